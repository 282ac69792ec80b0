"""The one exception that the command line shows without a traceback."""


class UserError(ValueError):
  """Something the user can mend: the message holds the offending value and the remedy."""
