"""The downlink (C of Equation 1): an adaptation as a small update, and its installation.

In the cloud, `sender.compress` makes an update with `settings`: `change` takes the difference (Eq.
7), `encode` chooses the codec, `rate` its step; `curve` measures the other choices. `codecs` has
the formats. On the device, `receiver` installs what `verify` accepts (Eq. 8). `signatures` signs
and verifies, `keys` reads key files and makes trust lists. Decoding needs numpy and zstandard, but
no torch.
"""
