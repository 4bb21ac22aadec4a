"""`python -m turnout`."""

from .cli import main

raise SystemExit(main())
