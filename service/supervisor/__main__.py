"""Run the supervisor: ``python -m service.supervisor --folder FOLDER -- COMMAND``."""

import sys

from service.supervisor.supervisor import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
