"""The downlink (C of Equation 1): an adaptation as a small update, and its installation.

In the cloud, `sender.compress` makes an update from an adaptation. `settings` has its settings,
`change` the difference that is coded (Eq. 7), `encode` the choice of codec, `rate` the search for
the step, `curve` the cost of every other choice, `codecs` the formats.

On the device, `receiver` installs what `verify` accepts (Eq. 8). `signatures` signs and verifies,
`keys` reads key files and makes trust lists. Decoding needs numpy and zstandard, but no torch.
"""
