"""torchrun for the launchers: `python -m torch.distributed.run` that ends as the first of its processes that failed.

torchrun itself exits with 1 whatever they exit with, behind a traceback of its own.
"""

import sys

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import main


def exit_code() -> int:
    """Carry out what the command line asks of torchrun; what a shell would report of the process that failed first, or
    of this one where a signal has ended it.
    """
    try:
        main()
    except ChildFailedError as error:
        code = error.get_first_failure()[1].exitcode
        return code if code > 0 else 128 - code
    except SignalException as error:  # the processes have got it as well, and have ended
        return 128 + error.sigval
    return 0


if __name__ == "__main__":
    sys.exit(exit_code())
