"""One module for each environment; every factory takes ``(setup, link)`` and calls ``link.lap()`` after every unit."""
