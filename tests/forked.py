"""The package's commands in processes of their own that import nothing: each is forked from one that has imported all.

A start of Python with JAX, Flax and Orbax takes seconds of CPU time, a fork none. The process that is forked has used
no device yet. A forked one gets its own arguments, environment, folder and files, and runs the module as `python -m`
does; it is a real process, with an exit code, that signals reach and end. Tests about the start itself start Python.
"""

import atexit
import contextlib
import functools
import gc
import json
import os
import pathlib
import runpy
import select
import signal
import socket
import struct
import subprocess
import sys

# What JAX reads when it is imported, so that a forked process has to be told.
_READ_AT_IMPORT = {"JAX_PLATFORMS": str, "JAX_NUM_CPU_DEVICES": int, "JAX_COMPILATION_CACHE_DIR": str,
                   "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": float,
                   "JAX_PERSISTENT_CACHE_ENABLE_XLA_CACHES": str}
_NUMBER = struct.Struct("i")


class Process:
  """A command as a forked process, with the part of subprocess.Popen's interface that the tests use."""

  def __init__(self, module, flags, *, environment, folder, merged=False):
    self.returncode = None
    # Files in memory, so that a command never waits for its reader.
    self._out, self._err = os.memfd_create("out"), os.memfd_create("err")
    self._status, theirs = os.pipe()
    request = json.dumps([module, list(map(str, flags)), dict(environment), str(folder)]).encode()
    socket.send_fds(_server(), [request], [self._out, self._out if merged else self._err, theirs])
    os.close(theirs)
    self.pid = self._read()

  def _read(self):
    number = os.read(self._status, _NUMBER.size)
    assert len(number) == _NUMBER.size, "the process that commands are forked from has ended"
    return _NUMBER.unpack(number)[0]

  def poll(self):
    """The exit code, negative after a signal; None while it runs."""
    if self.returncode is None and select.select([self._status], [], [], 0)[0]:
      self.returncode = self._read()
    return self.returncode

  def wait(self, timeout=None):
    """The exit code, once it has ended."""
    if self.returncode is None and not select.select([self._status], [], [], timeout)[0]:
      raise subprocess.TimeoutExpired(f"process {self.pid}", timeout)
    return self.poll()

  def send_signal(self, number):
    if self.poll() is None:
      os.kill(self.pid, number)

  def terminate(self):
    self.send_signal(signal.SIGTERM)

  def kill(self):
    self.send_signal(signal.SIGKILL)

  def communicate(self, timeout=None):
    """(standard output, standard error) as text, once it has ended."""
    self.wait(timeout)
    return tuple(os.pread(file, os.fstat(file).st_size, 0).decode() for file in (self._out, self._err))

  def __del__(self):
    for file in (self._out, self._err, self._status):
      os.close(file)


@functools.cache
def _server():
  """The socket of the process that commands are forked from, one for each process of the tests."""
  ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
  process = subprocess.Popen([sys.executable, __file__, str(theirs.fileno())], pass_fds=[theirs.fileno()],
                             cwd=pathlib.Path(__file__).resolve().parent.parent, stdin=subprocess.DEVNULL,
                             stdout=subprocess.DEVNULL,
                             env={**os.environ, "PYTHONPATH": str(pathlib.Path(__file__).resolve().parent.parent)})

  def end():
    ours.close()
    process.wait()

  theirs.close()
  atexit.register(end)
  return ours


def _serve(control):
  """Forks a process for every request until the socket is closed; returns in those processes: (module, flags)."""
  import sklearn.datasets  # noqa: F401

  import gr_jax.train  # noqa: F401
  # Never looked at by the garbage collector, so that forked processes share it.
  gc.freeze()
  while True:
    request, files, *_ = socket.recv_fds(control, 2**20, 3)
    with contextlib.suppress(ChildProcessError):
      while os.waitpid(-1, os.WNOHANG)[0]:
        pass
    if not request:
      os._exit(0)
    keeper = os.fork()
    if not keeper:
      control.close()
      return _forked(request, files)
    for file in files:
      os.close(file)


def _forked(request, files):
  """In a new process: leaves it behind to report how the command ends, which a second fork is."""
  *streams, status = files
  process = os.fork()
  if process:
    # Nobody listens any more if the test has failed.
    with contextlib.suppress(BrokenPipeError):
      os.write(status, _NUMBER.pack(process))
      os.write(status, _NUMBER.pack(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])))
    os._exit(0)
  os.close(status)
  for file, place in zip(streams, (1, 2)):
    os.dup2(file, place)
  for file in streams:
    os.close(file)
  module, flags, environment, folder = json.loads(request)
  _take(environment)
  os.chdir(folder)
  sys.path[0], sys.argv = folder, [module, *flags]
  return module


def _take(environment):
  """Makes this the environment, for JAX too."""
  import jax
  changed = {name for name in {*os.environ, *environment}
             if name.startswith("JAX_") and os.environ.get(name) != environment.get(name)}
  os.environ.clear()
  os.environ.update(environment)
  for name in changed:
    jax.config.update(name.lower(), _READ_AT_IMPORT[name](environment[name]))


if __name__ == "__main__":
  _module = _serve(socket.socket(fileno=int(sys.argv[1])))
  # Last of all, so that an exception or an exit ends the process as it ends any.
  runpy.run_module(f"gr_jax.{_module}", run_name="__main__", alter_sys=True)
