"""8-bit numbers with one scale a row: code = round(x / scale), scale = max |x| / 127."""

import numpy as np

LARGEST_CODE = 127


def quantize(values_NC: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """8-bit codes (N, C) int8 and scales (N,) float32 = max_c |x_nc| / 127 (halves to even)."""
    scales_N = (np.abs(values_NC).max(axis=1) / np.float32(LARGEST_CODE)).astype(np.float32)
    divisors_N = np.where(scales_N > 0, scales_N, np.float32(1))
    codes_NC = np.rint(values_NC / divisors_N[:, None])
    codes_NC = np.where(scales_N[:, None] > 0, codes_NC, 0)
    return np.clip(codes_NC, -LARGEST_CODE, LARGEST_CODE).astype(np.int8), scales_N


def dequantize(codes_NC: np.ndarray, scales_N: np.ndarray) -> np.ndarray:
    """Values (N, C) float32 of 8-bit codes: one product each, in float32."""
    return codes_NC.astype(np.float32) * scales_N[:, None]
