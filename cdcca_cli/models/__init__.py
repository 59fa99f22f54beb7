"""Vision-language models behind one interface; the only place that knows transformers' classes.

    model = load("folder-or-hub-id")
    model = load_device(device)

`model` holds the interface, `q` and `p` the connector kinds, `loading` finds and checks a
checkpoint, `initial` makes a device folder from one. Importing this package imports torch.
"""

from cdcca_cli.models.decoding import Generated
from cdcca_cli.models.language import Spliced
from cdcca_cli.models.loading import families, load, load_device
from cdcca_cli.models.model import Forward, LoadedModel

__all__ = ["Forward", "Generated", "LoadedModel", "Spliced", "families", "load", "load_device"]
