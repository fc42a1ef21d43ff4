"""``python3 -m smtpd_sync``: see :mod:`smtpd_sync.cli`."""

from .cli import main

if __name__ == "__main__":
    main()
