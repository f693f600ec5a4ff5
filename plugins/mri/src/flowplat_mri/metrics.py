"""How near a harmonized volume is to the truth, and whether the anatomy is still there. Volumes are (X, Y, Z) on the
common scale, where the target's 99.5th percentile is 1."""

from collections.abc import Mapping

import numpy as np

WINDOW = 11  # voxels of SSIM's Gaussian window (sigma 1.5)


def psnr(x: np.ndarray, truth: np.ndarray, mask: np.ndarray) -> float:
    """-10 log10 of the mean squared error over the voxels of ``mask``, in dB, for a range of 1. The background, which
    is right whatever one does, has no say."""
    error = float(np.mean(np.square(x[mask].astype(np.float64) - truth[mask])))
    return float(-10 * np.log10(max(error, 1e-12)))


def ssim(x: np.ndarray, truth: np.ndarray, mask: np.ndarray) -> float:
    """Structural similarity (Wang et al. 2004), range 1, Gaussian window 11^3 of sigma 1.5, its mean over the voxels of
    ``mask``."""
    from skimage.metrics import structural_similarity

    _, local = structural_similarity(
        x.astype(np.float32), truth.astype(np.float32), data_range=1.0, gaussian_weights=True, sigma=1.5,
        use_sample_covariance=False, full=True,
    )  # fmt: skip
    return float(local[mask].mean())


def medians(truth: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The median of each tissue on the target scanner; ``labels`` (X, Y, Z) are 0 outside and 1, 2, 3 for CSF, GM,
    WM."""
    return np.array([np.median(truth[labels == k]) for k in (1, 2, 3)])


def segmented(x: np.ndarray, mask: np.ndarray, middles: np.ndarray) -> np.ndarray:
    """Each voxel of ``mask`` labelled by the tissue whose median on the target scanner is nearest; 0 outside."""
    nearest = np.abs(x[..., None] - middles).argmin(-1) + 1
    return np.where(mask, nearest, 0)


def dice(a: np.ndarray, b: np.ndarray, label: int) -> float:
    """2 |A and B| / (|A| + |B|) of one label; 1 where neither has it."""
    one, other = a == label, b == label
    total = int(one.sum()) + int(other.sum())
    return 1.0 if total == 0 else float(2 * (one & other).sum() / total)


def gradient_correlation(x: np.ndarray, truth: np.ndarray, mask: np.ndarray) -> float:
    """The correlation of the lengths of the gradients over the voxels of ``mask``: edges where there should be some."""
    lengths = [np.sqrt(sum(g * g for g in np.gradient(one.astype(np.float32))))[mask] for one in (x, truth)]
    return float(np.corrcoef(*lengths)[0, 1])


def compared(
    x: np.ndarray, truth: np.ndarray, mask: np.ndarray, labels: np.ndarray | None = None
) -> Mapping[str, float]:
    """All of it; with the tissues' ``labels``, Dice of grey and white matter and the change of grey matter's volume."""
    found = {
        "psnr": psnr(x, truth, mask),
        "ssim": ssim(x, truth, mask),
        "gradient_correlation": gradient_correlation(x, truth, mask),
    }
    if labels is not None:
        middles = medians(truth, labels)
        own, there = segmented(x, mask, middles), segmented(truth, mask, middles)
        found |= {
            "dice_gm": dice(own, labels, 2),
            "dice_wm": dice(own, labels, 3),
            "gm_volume_change": float((own == 2).sum() / max(1, (there == 2).sum()) - 1),
        }
    return found
