"""A model that several tests ask, and simulated scans as files."""

import numpy as np
import pytest
import torch

from flowcore import losses, paths, solvers, times
from flowcore.couplings import independent
from flowcore.plugin.contracts import Parts
from flowplat_mri import simulate
from flowplat_mri.data import Simulated, SimulatedConfig
from flowplat_mri.networks import UNetConfig, unet
from flowplat_mri.simulating import image

VOXEL = 6.0


class Model:
    """What a task sees of a model; see ``flowcore.plugin.contracts.Trained``."""

    def __init__(self, data, network):
        self.data, self.network, self.device, self.seed = data, network, torch.device("cpu"), 0

    def parts(self):
        return Parts(
            self.data.spec(), self.data, self.device, path=paths.linear(), coupling=independent(),
            times=times.uniform(), loss=losses.l2(), predicts="x1", solver=solvers.euler(),
        )  # fmt: skip


@pytest.fixture(scope="session")
def model():
    """A network of random weights, which knows its target: three simulated subjects of 6 mm."""
    torch.manual_seed(0)
    data = Simulated(SimulatedConfig(resolution=VOXEL, subjects=3, held=1, guises=1))
    network = unet(UNetConfig(channels=[8, 8]), data.spec()).eval()
    with torch.no_grad():
        for one in network.parameters():
            one.add_(0.03 * torch.randn_like(one))
    return Model(data, network)


@pytest.fixture(scope="session")
def brain():
    """``brain("S3", 7)`` is a nibabel image of subject 7 on a scanner, of 6 mm, in thousands."""

    def made(scanner="S3", number=7, voxel=VOXEL):
        tissues = simulate.subject(number, voxel)
        return image(1000 * simulate.scan(tissues, scanner, 5), tissues.affine)

    return made


@pytest.fixture
def save(tmp_path):
    """``save("a.nii.gz", image)`` is the path of a new file; an array gets an affine of 2 mm."""
    import nibabel

    def made(name, what, affine=None):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(what, np.ndarray):
            kind = nibabel.MGHImage if name.endswith((".mgz", ".mgh")) else nibabel.Nifti1Image
            what = kind(what, np.diag([2.0, 2, 2, 1]) if affine is None else affine)
        what.to_filename(path)
        return path

    return made
