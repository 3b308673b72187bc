"""The panel and the scene side of DiffusionFM: everything that touches Qt or MRML."""
