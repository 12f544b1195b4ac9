"""``python -m lstm_engine`` is ``lstm-engine``."""

from .cli import main

if __name__ == "__main__":
    main()
