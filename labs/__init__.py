"""Further systems, built from the parts of rollnumber_04.py."""

import signal
import sys

# `python -m labs.NAME` comes here first. torch takes seconds to import, in which Ctrl-C would be a traceback.
if sys.argv[:1] == ["-m"] and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
