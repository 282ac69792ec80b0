"""The exception that the command line prints without a traceback."""


class UserError(ValueError):
  """An error that the user can fix: the message gives the offending value and the remedy."""
