"""Nodes to files and back: memory order, frames, gradients, windows, colour maps, folders."""

from __future__ import annotations

import json

import numpy as np
import pytest
from module_driver import AFFINE, addSmallScan, smallScan

from DiffusionFMLib.errors import DiffusionFMError, InputError
from DiffusionFMLib.events import Artifact
from DiffusionFMLib.gradients import GradientTable

pytestmark = pytest.mark.usefixtures("emptyScene")


def header(path) -> dict:
    return json.loads(path.with_suffix(".json").read_text())


def artifact(path, name, array, **values) -> Artifact:
    np.save(path / f"{name}.npy", array)
    shown = {"title": name.upper(), "window": (0.0, 0.8), "colors": "grey"} | values
    return Artifact(
        "1", f"{name}.nii.gz", "map", name, array=str(path / f"{name}.npy"), affine=AFFINE.tolist(), **shown
    )


def run_of(scan, model="dti", method="wls"):
    from DiffusionFMSlicer.scene.results import RunLabel

    return RunLabel(scan, scan.GetName(), model, method)


def imported(event, run):
    from DiffusionFMSlicer.scene.results import place, prepare, reveal

    node = place(event, prepare(event), run)
    for _ in reveal(event, node):
        pass
    return node


# --- out ------------------------------------------------------------------------------------------------------


def test_scan_is_exported_as_it_lies_in_memory(tmp_path):
    from DiffusionFMSlicer.scene.inputs import exportScan

    signal, bvals, bvecs = smallScan()
    path = exportScan(addSmallScan(), tmp_path)
    np.testing.assert_array_equal(np.load(path), signal)
    written = header(path)
    np.testing.assert_allclose(written["affine"], AFFINE, atol=1e-9)
    np.testing.assert_allclose(written["bvals"], bvals)
    np.testing.assert_allclose(written["bvecs"], bvecs, atol=1e-6)


def test_the_library_reads_the_export_as_the_same_scan(tmp_path):
    from DiffusionFMLib.events import SilentReport
    from DiffusionFMLib.io import read_acquisition
    from DiffusionFMLib.settings import ScanSettings
    from DiffusionFMSlicer.scene.inputs import exportScan

    signal, bvals, bvecs = smallScan()
    read = read_acquisition(ScanSettings(dwi=str(exportScan(addSmallScan(), tmp_path))), SilentReport())
    np.testing.assert_array_equal(read.signal, signal.transpose(2, 1, 0, 3))
    np.testing.assert_allclose(read.affine, AFFINE, atol=1e-9)
    np.testing.assert_allclose(read.gtab.bvecs, bvecs, atol=1e-6)


def test_measurement_frame_takes_gradients_to_ras():
    from DiffusionFMSlicer.scene.geometry import vtkMatrix
    from DiffusionFMSlicer.scene.inputs import gradientsOf

    scan = addSmallScan()
    frame = np.eye(4)
    frame[:3, :3] = [[0, -1, 0], [1, 0, 0], [0, 0, -1]]
    scan.SetMeasurementFrameMatrix(vtkMatrix(frame))
    np.testing.assert_allclose(gradientsOf(scan).bvecs, np.array(smallScan()[2]) @ frame[:3, :3].T, atol=1e-6)


def test_nrrd_that_slicer_reads_keeps_its_gradients(tmp_path):
    """A left-handed frame and b-values coded in the gradients' length, as Slicer's own reader gives them."""
    import slicer

    from DiffusionFMSlicer.scene.inputs import gradientsOf

    signal = (smallScan()[0][..., :4] * 1000).astype(np.int16)
    gradients = np.array([[0, 0, 0], [1, 0, 0], [0, np.sqrt(0.5), 0], [0, 0.6, 0.8]])
    lines = [
        "NRRD0005", "type: int16", "dimension: 4", "space: left-posterior-superior", "sizes: 4 9 8 7",
        "space directions: none (2,0,0) (0,2,0) (0,0,2.5)", "kinds: list domain domain domain", "endian: little",
        "encoding: raw", "space origin: (0,0,0)", "measurement frame: (1,0,0) (0,1,0) (0,0,1)", "modality:=DWMRI",
        "DWMRI_b-value:=2000",
        *(f"DWMRI_gradient_{i:04d}:={g[0]:.9f} {g[1]:.9f} {g[2]:.9f}" for i, g in enumerate(gradients)),
    ]  # fmt: skip
    path = tmp_path / "scan.nrrd"
    path.write_bytes(("\n".join(lines) + "\n\n").encode() + signal.astype("<i2").tobytes())
    scan = slicer.util.loadVolume(str(path))
    assert scan.IsA("vtkMRMLDiffusionWeightedVolumeNode")
    found = gradientsOf(scan)
    table = GradientTable(found.bvals, found.bvecs)
    np.testing.assert_allclose(table.bvals, [0, 2000, 1000, 2000], rtol=1e-3)
    # LPS to RAS: x and y change sign
    np.testing.assert_allclose(table.bvecs, [[0, 0, 0], [-1, 0, 0], [0, -1, 0], [0, -0.6, 0.8]], atol=1e-6)


def addSequence(signal):
    import slicer

    sequence = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSequenceNode", "sequence")
    for i in range(signal.shape[3]):
        volume = slicer.util.addVolumeFromArray(signal[..., i].copy(), ijkToRAS=AFFINE)
        sequence.SetDataNodeAtValue(volume, str(i))
        slicer.mrmlScene.RemoveNode(volume)
    return sequence


def test_sequence_is_gathered(tmp_path):
    from DiffusionFMSlicer.scene.inputs import exportScan, facts, isScan

    signal = smallScan()[0]
    sequence = addSequence(signal)
    assert isScan(sequence)
    assert facts(sequence).startswith("9x8x7")
    path = exportScan(sequence, tmp_path)
    np.testing.assert_array_equal(np.load(path), signal)
    assert "bvals" not in header(path)


def test_single_volume_is_refused(tmp_path):
    import slicer

    from DiffusionFMSlicer.scene.inputs import exportScan

    volume = slicer.util.addVolumeFromArray(smallScan()[0][..., 0], name="T1")
    with pytest.raises(InputError, match="T1 is not a diffusion scan"):
        exportScan(volume, tmp_path)


@pytest.mark.parametrize("kind", ["labelmap", "segmentation"])
@pytest.mark.parametrize("of", ["volume", "sequence"])
def test_mask_is_exported_on_the_scans_grid(tmp_path, kind, of):
    import slicer

    from DiffusionFMSlicer.scene.geometry import vtkMatrix
    from DiffusionFMSlicer.scene.inputs import exportMask

    signal = smallScan()[0]
    scan = addSmallScan() if of == "volume" else addSequence(signal)
    labels = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLabelMapVolumeNode")
    slicer.util.updateVolumeFromArray(labels, (signal[..., 0] > 0.5).astype(np.uint8))
    labels.SetIJKToRASMatrix(vtkMatrix(AFFINE))
    mask = labels
    if kind == "segmentation":
        mask = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode")
        mask.SetReferenceImageGeometryParameterFromVolumeNode(labels)
        slicer.vtkSlicerSegmentationsModuleLogic.ImportLabelmapToSegmentationNode(labels, mask)
    before = slicer.mrmlScene.GetNumberOfNodes()
    path = exportMask(mask, scan, tmp_path, "mask")
    np.testing.assert_array_equal(np.load(path) > 0, signal[..., 0] > 0.5)
    np.testing.assert_allclose(header(path)["affine"], AFFINE, atol=1e-6)
    assert slicer.mrmlScene.GetNumberOfNodes() == before


def test_segmentation_moves_with_its_scan(tmp_path):
    import slicer

    from DiffusionFMSlicer.scene.geometry import vtkMatrix
    from DiffusionFMSlicer.scene.inputs import exportMask

    inside = (smallScan()[0][..., 0] > 0.5).astype(np.uint8)
    scan = addSmallScan()
    labels = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLabelMapVolumeNode")
    slicer.util.updateVolumeFromArray(labels, inside)
    labels.SetIJKToRASMatrix(vtkMatrix(AFFINE))
    mask = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode")
    mask.SetReferenceImageGeometryParameterFromVolumeNode(labels)
    slicer.vtkSlicerSegmentationsModuleLogic.ImportLabelmapToSegmentationNode(labels, mask)
    moved = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode")
    matrix = np.eye(4)
    matrix[0, 3] = 4.0
    moved.SetMatrixTransformToParent(vtkMatrix(matrix))
    for node in (scan, mask):
        node.SetAndObserveTransformNodeID(moved.GetID())
    path = exportMask(mask, scan, tmp_path, "mask")
    np.testing.assert_array_equal(np.load(path) > 0, inside > 0)
    np.testing.assert_allclose(header(path)["affine"], AFFINE, atol=1e-6)


def test_label_map_under_another_transform_is_refused(tmp_path):
    import slicer

    from DiffusionFMSlicer.scene.geometry import vtkMatrix
    from DiffusionFMSlicer.scene.inputs import exportMask

    scan = addSmallScan()
    labels = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLabelMapVolumeNode", "lesion")
    slicer.util.updateVolumeFromArray(labels, (smallScan()[0][..., 0] > 0.5).astype(np.uint8))
    labels.SetIJKToRASMatrix(vtkMatrix(AFFINE))
    moved = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode")
    labels.SetAndObserveTransformNodeID(moved.GetID())
    with pytest.raises(InputError, match=r"lesion and .* different transforms.*harden"):
        exportMask(labels, scan, tmp_path, "mask")
    scan.SetAndObserveTransformNodeID(moved.GetID())
    assert exportMask(labels, scan, tmp_path, "mask").is_file()


def test_empty_segmentation_is_refused(tmp_path):
    import slicer

    from DiffusionFMSlicer.scene.inputs import exportMask

    mask = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "nothing")
    with pytest.raises(InputError, match="nothing has no segments"):
        exportMask(mask, addSmallScan(), tmp_path, "mask")


def test_opened_files_are_passed_on_until_node_or_files_change(tmp_path):
    import slicer

    from DiffusionFMSlicer.scene.inputs import rememberSource, unchangedSource

    file = tmp_path / "a.nii.gz"
    file.write_bytes(b"1")
    scan = addSmallScan()
    assert unchangedSource(scan) is None
    rememberSource(scan, {"dwi": str(file)})
    assert unchangedSource(scan) == {"dwi": str(file)}
    slicer.util.arrayFromVolumeModified(scan)
    assert unchangedSource(scan) is None
    rememberSource(scan, {"dwi": str(file)})
    scan.SetBValue(1, 900.0)
    assert unchangedSource(scan) is None
    rememberSource(scan, {"dwi": str(file)})
    file.write_bytes(b"12")
    assert unchangedSource(scan) is None


# --- in -------------------------------------------------------------------------------------------------------


def test_scalar_map_has_values_place_window_and_legend(tmp_path):
    import slicer

    from DiffusionFMSlicer.scene.geometry import affineOf

    signal = smallScan()[0]
    node = imported(
        artifact(tmp_path, "md", signal[..., 1], window=(0.0, 3e-3), unit="mm2/s", title="MD"), run_of(addSmallScan())
    )
    np.testing.assert_array_equal(slicer.util.arrayFromVolume(node), signal[..., 1])
    np.testing.assert_allclose(affineOf(node), AFFINE, atol=1e-9)
    display = node.GetDisplayNode()
    assert (display.GetWindowLevelMin(), display.GetWindowLevelMax()) == pytest.approx((0, 3e-3))
    assert not display.GetAutoWindowLevel()
    assert display.GetColorNodeID() == "vtkMRMLColorTableNodeGrey"
    assert slicer.modules.colors.logic().GetColorLegendDisplayNode(node).GetTitleText() == "MD (mm²/s)"


def test_map_without_window_is_windowed_by_its_data(tmp_path):
    display = imported(
        artifact(tmp_path, "s0", smallScan()[0][..., 0] * 500, window=None), run_of(addSmallScan())
    ).GetDisplayNode()
    assert 0 <= display.GetWindowLevelMin() < 50
    assert 400 < display.GetWindowLevelMax() < 510


def test_color_tables_are_ours_and_made_once(tmp_path):
    import slicer

    run = run_of(addSmallScan())
    residual = imported(artifact(tmp_path, "residual", smallScan()[0][..., 0], colors="inferno"), run)
    colors = residual.GetDisplayNode().GetColorNode()
    rgba = [0.0] * 4
    assert colors.GetColor(255, rgba)
    assert rgba == pytest.approx([252 / 255, 1, 164 / 255, 1], abs=0.01)
    status = imported(artifact(tmp_path, "status", np.ones((7, 8, 9), np.float32), colors="labels"), run)
    assert status.IsA("vtkMRMLLabelMapVolumeNode")
    assert status.GetDisplayNode().GetColorNode().GetColor(0, rgba)
    assert rgba[3] == 0
    imported(artifact(tmp_path, "residual2", smallScan()[0][..., 0], colors="inferno"), run)
    named = [n for n in slicer.util.getNodesByClass("vtkMRMLColorTableNode") if n.GetName() == "DiffusionFM inferno"]
    assert len(named) == 1


def test_color_fa_is_bytes_of_red_green_blue(tmp_path):
    import slicer

    node = imported(artifact(tmp_path, "colorfa", smallScan()[0][..., :3], colors="rgb"), run_of(addSmallScan()))
    assert node.GetVoxelVectorType() == node.VoxelVectorTypeColorRGB
    array = slicer.util.arrayFromVolume(node)
    assert array.dtype == np.uint8
    np.testing.assert_allclose(array / 255, smallScan()[0][..., :3], atol=0.002)


def test_tensor_has_nine_components_in_order_and_hidden_glyphs(tmp_path):
    from vtk.util.numpy_support import vtk_to_numpy

    from DiffusionFMSlicer.scene.display import glyphNodes, setGlyphsVisible

    six = smallScan()[0][..., :6]
    node = imported(artifact(tmp_path, "tensor", six), run_of(addSmallScan()))
    assert node.IsA("vtkMRMLDiffusionTensorVolumeNode")
    nine = vtk_to_numpy(node.GetImageData().GetPointData().GetTensors()).reshape(7, 8, 9, 3, 3)
    np.testing.assert_array_equal(nine, nine.swapaxes(-1, -2))
    for index, (row, column) in enumerate([(0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2)]):
        np.testing.assert_array_equal(nine[..., row, column], six[..., index])
    assert len(glyphNodes(node)) == 3
    assert not any(g.GetVisibility() for g in glyphNodes(node))
    setGlyphsVisible(node, True)
    assert all(g.GetVisibility() for g in glyphNodes(node))


def makeTracts(tmp_path, run):
    points = np.array([[0, 0, 0], [2, 0, 0], [4, 0, 0], [-30, 5, 5], [-30, 5, 8]], np.float32)
    np.savez(tmp_path / "t.npz", points=points, offsets=[0, 3, 5], fa=np.linspace(0.2, 0.6, 5, dtype=np.float32))
    return points, imported(
        Artifact("1", "t.trx", "tracts", "deterministic", "Tracts", array=str(tmp_path / "t.npz")), run
    )


def test_tracts_lie_where_they_were_computed_and_show_their_direction(tmp_path):
    import slicer
    from vtk.util.numpy_support import vtk_to_numpy

    points, node = makeTracts(tmp_path, run_of(addSmallScan()))
    data = node.GetPolyData()
    np.testing.assert_array_equal(slicer.util.arrayFromModelPoints(node), points)
    assert data.GetNumberOfLines() == 2
    assert [data.GetCell(i).GetNumberOfPoints() for i in (0, 1)] == [3, 2]
    colors = vtk_to_numpy(data.GetPointData().GetArray("orientation"))
    np.testing.assert_array_equal(colors, [[255, 0, 0]] * 3 + [[0, 0, 255]] * 2)
    np.testing.assert_allclose(vtk_to_numpy(data.GetPointData().GetArray("FA")), np.linspace(0.2, 0.6, 5), atol=1e-6)
    display = node.GetDisplayNode()
    assert display.GetVisibility2D()
    assert display.GetVisibility3D()
    assert display.GetScalarVisibility()


def test_saved_tracts_are_not_mirrored(tmp_path):
    import slicer

    points, node = makeTracts(tmp_path, run_of(addSmallScan()))
    file = tmp_path / "tracts.vtk"
    assert slicer.util.saveNode(node, str(file))
    np.testing.assert_allclose(slicer.util.arrayFromModelPoints(slicer.util.loadModel(str(file))), points, atol=1e-4)


def test_tubes_stand_for_lines_and_go_again(tmp_path):
    from DiffusionFMSlicer.scene.tracts import setTubes

    _, node = makeTracts(tmp_path, run_of(addSmallScan()))
    setTubes(node, True)
    tubes = node.GetNodeReference("DiffusionFM.Tubes")
    assert tubes.GetPolyData().GetNumberOfPolys() + tubes.GetPolyData().GetNumberOfStrips() > 0
    assert tubes.GetDisplayNode().GetVisibility()
    assert not node.GetDisplayNode().GetVisibility3D()
    setTubes(node, False)
    assert not tubes.GetDisplayNode().GetVisibility()
    assert node.GetDisplayNode().GetVisibility3D()


def test_results_share_a_folder_and_a_rerun_updates_them_in_place(tmp_path):
    import slicer

    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)

    def folder(node):
        return hierarchy.GetItemParent(hierarchy.GetItemByDataNode(node))

    signal, scan = smallScan()[0], addSmallScan()
    fa = imported(artifact(tmp_path, "fa", signal[..., 1]), run_of(scan))
    md = imported(artifact(tmp_path, "md", signal[..., 2]), run_of(scan))
    assert folder(fa) == folder(md)
    assert hierarchy.GetItemName(folder(fa)) == "scan: DTI (wls)"
    again = imported(artifact(tmp_path, "fa", signal[..., 3]), run_of(scan))
    assert again is fa
    np.testing.assert_array_equal(slicer.util.arrayFromVolume(fa), signal[..., 3])
    other = imported(artifact(tmp_path, "fa", signal[..., 1]), run_of(scan, method="ols"))
    assert other is not fa
    assert folder(other) != folder(fa)
    second = imported(artifact(tmp_path, "fa", signal[..., 1]), run_of(addSmallScan("second")))
    assert second is not fa
    assert folder(second) not in (folder(fa), folder(other))


def test_results_follow_the_scans_transform(tmp_path):
    import slicer

    scan = addSmallScan()
    transform = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode")
    scan.SetAndObserveTransformNodeID(transform.GetID())
    fa = imported(artifact(tmp_path, "fa", smallScan()[0][..., 1]), run_of(scan))
    assert fa.GetTransformNodeID() == transform.GetID()


def test_unreadable_result_is_an_error_with_a_hint(tmp_path):
    event = artifact(tmp_path, "fa", smallScan()[0][..., 1])
    (tmp_path / "fa.npy").write_bytes(b"\x93NUMPY half")
    with pytest.raises(DiffusionFMError, match=r"fa\.npy"):
        imported(event, run_of(addSmallScan()))


def test_value_under_a_point(tmp_path):
    from DiffusionFMSlicer.inspector import describe

    signal, scan = smallScan()[0], addSmallScan()
    imported(artifact(tmp_path, "md", signal[..., 1] * 1e-3, unit="mm2/s", title="MD"), run_of(scan))
    imported(
        artifact(tmp_path, "status", np.full((7, 8, 9), 2, np.float32), title="Fit status", colors="labels"),
        run_of(scan),
    )
    inside = tuple((AFFINE @ [3, 4, 5, 1])[:3])
    assert describe(inside) == f"MD {signal[5, 4, 3, 1]:.3g} 10⁻³ mm²/s   Fit status clipped"
    assert describe((1000.0, 0.0, 0.0)) == ""
