"""Slice and 3D views without Qt: MRML view nodes, their logics and displayable managers, rendered off screen."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import slicer
import vtk
from vtkmodules.util.numpy_support import vtk_to_numpy

SLICE_MANAGERS = (
    "vtkMRMLVolumeGlyphSliceDisplayableManager",
    "vtkMRMLModelSliceDisplayableManager",
    "vtkMRMLCrosshairDisplayableManager",
    "vtkMRMLOrientationMarkerDisplayableManager",
    "vtkMRMLRulerDisplayableManager",
    "vtkMRMLScalarBarDisplayableManager",
    "vtkMRMLSegmentationsDisplayableManager2D",
    "vtkMRMLMarkupsDisplayableManager",
    "vtkMRMLTransformsDisplayableManager2D",
    "vtkMRMLColorLegendDisplayableManager",
)
THREE_D_MANAGERS = (
    "vtkMRMLCameraDisplayableManager",
    "vtkMRMLViewDisplayableManager",
    "vtkMRMLModelDisplayableManager",
    "vtkMRMLThreeDReformatDisplayableManager",
    "vtkMRMLCrosshairDisplayableManager3D",
    "vtkMRMLOrientationMarkerDisplayableManager",
    "vtkMRMLRulerDisplayableManager",
    "vtkMRMLSegmentationsDisplayableManager3D",
    "vtkMRMLMarkupsDisplayableManager",
    "vtkMRMLTransformsDisplayableManager3D",
    "vtkMRMLColorLegendDisplayableManager",
    "vtkMRMLVolumeRenderingDisplayableManager",
)
"""What draws the nodes of the scene, in Slicer's order."""

DARK = (0.06, 0.07, 0.10), (0.15, 0.17, 0.22)
"""Lower and upper colour behind the 3D scene."""


class View:
    """What slice and 3D views share.

    Parameters
    ----------
    factory : vtkMRMLDisplayableManagerFactory
        Slice or 3D views' own.
    managers : tuple of str
        Displayable managers to register with it.
    applicationLogic : vtkMRMLApplicationLogic

    Attributes
    ----------
    onRenderRequest : callable or None
        Called, often, when the picture is no longer up to date.
    """

    def __init__(self, factory: Any, managers: tuple[str, ...], applicationLogic: Any) -> None:
        self.onRenderRequest: Callable[[], None] | None = None
        self._observations: list[tuple[Any, int]] = []
        self.renderWindow = vtk.vtkRenderWindow()
        self.renderWindow.SetOffScreenRendering(1)
        self.renderWindow.SetShowWindow(False)
        self.renderWindow.SetMultiSamples(0)
        self.renderer = vtk.vtkRenderer()
        self.renderWindow.AddRenderer(self.renderer)
        self.interactor = vtk.vtkGenericRenderWindowInteractor()
        self.interactor.SetRenderWindow(self.renderWindow)
        # interactors would render at each mouse move: pictures are only made by `grab`
        self.interactor.EnableRenderOff()
        factory.SetMRMLApplicationLogic(applicationLogic)
        for name in managers:
            if hasattr(slicer, name) and not factory.IsDisplayableManagerRegistered(name):
                factory.RegisterDisplayableManager(name)
        self._factory = factory

    def _start(self, node: Any, style: Any) -> None:
        self.node = node
        self.style = style
        self.group = slicer.vtkMRMLDisplayableManagerGroup()
        self.group.Initialize(self._factory, self.renderer)
        self.group.AddObserver(vtk.vtkCommand.UpdateEvent, self.requestRender)
        self.group.SetMRMLDisplayableNode(node)
        style.SetDisplayableManagers(self.group)
        style.SetInteractor(self.interactor)
        self.interactor.Initialize()

    def requestRender(self, *_: Any) -> None:
        """Say that the picture is out of date."""
        if self.onRenderRequest is not None:
            self.onRenderRequest()

    def resize(self, width: int, height: int) -> None:
        """Set the size of the picture, pixels."""
        self.renderWindow.SetSize(width, height)
        self.interactor.SetSize(width, height)

    def grab(self) -> np.ndarray[Any, Any]:
        """Render.

        Returns
        -------
        ndarray, shape (height, width, 3), uint8
            First row on top.
        """
        self.renderWindow.Render()
        width, height = self.renderWindow.GetSize()
        pixels = vtk.vtkUnsignedCharArray()
        self.renderWindow.GetPixelData(0, 0, width - 1, height - 1, 0, pixels, 0)
        return np.ascontiguousarray(vtk_to_numpy(pixels).reshape(height, width, 3)[::-1])

    def _observe(self, event: int, callback: Callable[..., None]) -> None:
        scene = self.node.GetScene()
        self._observations.append((scene, scene.AddObserver(event, callback)))

    def close(self) -> None:
        """Let go of the scene and of the graphics memory."""
        for scene, tag in self._observations:
            scene.RemoveObserver(tag)
        self.onRenderRequest = None
        self.style.SetInteractor(None)
        self.group.SetMRMLDisplayableNode(None)
        self.renderWindow.Finalize()


class SliceView(View):
    """A slice through the scene's volumes.

    Parameters
    ----------
    node : vtkMRMLSliceNode
    applicationLogic : vtkMRMLApplicationLogic
    """

    def __init__(self, node: Any, applicationLogic: Any) -> None:
        super().__init__(
            slicer.vtkMRMLSliceViewDisplayableManagerFactory.GetInstance(), SLICE_MANAGERS, applicationLogic
        )
        self.renderer.SetBackground(0, 0, 0)
        self.renderer.GetActiveCamera().ParallelProjectionOn()
        self.renderWindow.SetAlphaBitPlanes(1)
        self._mapper = vtk.vtkImageMapper()
        self._mapper.SetColorWindow(255)
        self._mapper.SetColorLevel(127.5)
        self._actor = vtk.vtkActor2D()
        self._actor.SetMapper(self._mapper)
        self._actor.GetProperty().SetDisplayLocationToBackground()
        self._actor.VisibilityOff()
        self.renderer.AddViewProp(self._actor)
        self.logic = slicer.vtkMRMLSliceLogic()
        self.logic.SetMRMLApplicationLogic(applicationLogic)
        applicationLogic.GetSliceLogics().AddItem(self.logic)
        self.logic.SetMRMLScene(node.GetScene())
        self.logic.SetSliceNode(node)
        style = slicer.vtkMRMLSliceViewInteractorStyle()
        style.SetSliceLogic(self.logic)
        self.interactor.SetInteractorStyle(vtk.vtkInteractorStyleUser())
        self._start(node, style)
        self.logic.AddObserver(vtk.vtkCommand.ModifiedEvent, self._showImage)
        self._observe(node.GetScene().EndImportEvent, self._renewModels)
        self._showImage()

    def _renewModels(self, *_: Any) -> None:
        # The model manager keeps its own copy of the slice's plane, and sleeps while a scene is read: without a
        # word from the node it goes on cutting models by the plane from before.
        self.node.Modified()

    def _showImage(self, *_: Any) -> None:
        image = self.logic.GetImageDataConnection()
        if self._mapper.GetNumberOfInputConnections(0) == 0 or self._mapper.GetInputConnection(0, 0) is not image:
            self._mapper.SetInputConnection(image)
        self._actor.SetVisibility(image is not None)
        self.requestRender()

    @property
    def compositeNode(self) -> Any:
        """Which volumes are shown."""
        return self.logic.GetSliceCompositeNode()

    def resize(self, width: int, height: int) -> None:
        """Set the size of the picture, pixels."""
        super().resize(width, height)
        self.logic.ResizeSliceNode(width, height)

    def fit(self) -> None:
        """Show all of the volumes."""
        self.logic.FitSliceToBackground()
        self.logic.SnapSliceOffsetToIJK()


class ThreeDView(View):
    """The scene in 3D.

    Parameters
    ----------
    node : vtkMRMLViewNode
    applicationLogic : vtkMRMLApplicationLogic
    """

    def __init__(self, node: Any, applicationLogic: Any) -> None:
        super().__init__(
            slicer.vtkMRMLThreeDViewDisplayableManagerFactory.GetInstance(), THREE_D_MANAGERS, applicationLogic
        )
        self.logic = slicer.vtkMRMLViewLogic()
        self.logic.SetMRMLApplicationLogic(applicationLogic)
        applicationLogic.GetViewLogics().AddItem(self.logic)
        self.logic.SetName(node.GetLayoutName())
        self.logic.SetMRMLScene(node.GetScene())
        # lines without it are ragged, and multisampling costs too much on a CPU
        self.renderer.SetUseFXAA(True)
        self.interactor.SetInteractorStyle(vtk.vtkInteractorStyle3D())
        self._start(node, slicer.vtkMRMLThreeDViewInteractorStyle())
        self._dress()
        self._observe(node.GetScene().EndCloseEvent, self._dress)

    def _dress(self, *_: Any) -> None:
        # closing a scene gives its view nodes Slicer's own colours and box again
        self.node.SetBackgroundColor(*DARK[0])
        self.node.SetBackgroundColor2(*DARK[1])
        self.node.SetBoxVisible(False)
        self.node.SetAxisLabelsVisible(False)

    @property
    def cameraNode(self) -> Any:
        """The view's camera."""
        return self.group.GetDisplayableManagerByClassName("vtkMRMLCameraDisplayableManager").GetCameraNode()

    def grab(self) -> np.ndarray[Any, Any]:
        """Render; see `View.grab`."""
        # a camera that was read with a scene knows nothing of how far its models reach, and would cut them
        self.renderer.ResetCameraClippingRange()
        return super().grab()

    def fit(self) -> None:
        """Centre the camera on what is visible, keeping its direction."""
        bounds = [0.0] * 6
        self.renderWindow.Render()
        self.renderer.ComputeVisiblePropBounds(bounds)
        if bounds[0] <= bounds[1]:
            self.renderer.ResetCamera(bounds)
            self.renderer.ResetCameraClippingRange(bounds)
            self.requestRender()
