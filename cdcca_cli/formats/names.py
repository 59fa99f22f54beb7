"""Names that files, settings and models share. Imports nothing.

GROUPS: of an overlay's parameters. LORA_A, LORA_B: how the names of LoRA's two matrices end.
QUANTIZATIONS: how a device holds its language model. DTYPES: what a model computes in.
CODEBOOK_FILE: the name of a codebook (`codebook`) in a checkpoint folder, if it has one.
"""

GROUPS = ("norm", "bias", "query", "lora")
LORA_A, LORA_B = ".lora_A", ".lora_B"
QUANTIZATIONS = ("none", "int8", "nf4")
CODEBOOK_FILE = "codebook.safetensors"
DTYPES = ("float32", "bfloat16", "float16")
