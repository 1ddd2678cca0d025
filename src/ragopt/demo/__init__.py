"""``ragopt demo``: the same questions without and with ragopt, measured on this machine."""
