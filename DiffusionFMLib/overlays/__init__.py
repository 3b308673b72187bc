"""Maps of what the encoder makes of a scan: its features, where it is surprised, and what it attends to."""
