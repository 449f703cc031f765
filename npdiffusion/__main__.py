"""python -m npdiffusion "prompt" """
import sys

from npdiffusion.command.cli import main

if __name__ == "__main__":
    sys.exit(main())
