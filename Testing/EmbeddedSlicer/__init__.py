"""A small host that runs 3D Slicer scripted modules outside of Slicer.

The MRML scene, its logics and the renderers are Slicer's own (the ``slicer-core`` package); Qt is PySide6. What
Slicer's desktop program adds to these in C++ and PythonQt is stood in for here: the ``qt`` and ``ctk`` modules, MRML
widgets, views and layouts, and those parts of the ``slicer`` package that are not in slicer-core. The source of a
module runs unmodified.

Start reading at `EmbeddedSlicer.host`.
"""
