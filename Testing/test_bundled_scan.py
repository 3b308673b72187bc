"""The whole job on the small real scan that DIPY carries: what runs where no other real scan is at hand."""

from __future__ import annotations

import nibabel as nib
import numpy as np

from DiffusionFMLib.cli import main


def test_small_scan_is_fitted_as_dipy_fits_it(tmp_path):
    from dipy.core.gradients import gradient_table
    from dipy.data import get_fnames
    from dipy.io.gradients import read_bvals_bvecs
    from dipy.reconst.dti import TensorModel

    scan, bval, bvec = get_fnames(name="small_64D")
    bvals, bvecs = read_bvals_bvecs(bval, bvec)
    # its b0 has no number for a direction, which our reader refuses
    bvecs = np.nan_to_num(bvecs)
    np.savetxt(tmp_path / "bvec", bvecs.T)
    flags = ["--bval", str(bval), "--bvec", str(tmp_path / "bvec")]
    assert main(["info", str(scan), *flags]) == 0
    assert main(["fit", str(scan), *flags, "--out", str(tmp_path)]) == 0

    fitted = TensorModel(gradient_table(bvals, bvecs=bvecs)).fit(nib.load(scan).get_fdata())
    (path,) = tmp_path.glob("*_param-fa_desc-wls_dwimap.nii.gz")
    fa = nib.load(path).get_fdata()
    inside = fa > 0
    assert inside.mean() > 0.5
    assert np.median(np.abs(fa - fitted.fa)[inside]) < 1e-4
