"""Names on the Hugging Face Hub, which are told from paths without asking it."""

from pathlib import Path

__all__ = ["HUB", "HUB_FILE", "is_on_hub"]

HUB = "hf-hub:"
"""Beginning of names on the Hub, as timm has it (``timm.create_model("hf-hub:…")``)."""

HUB_FILE = "model.safetensors"
"""Name of a model's file in its repository, ours and most libraries'."""


def is_on_hub(path: str | Path) -> bool:
    """Return True for a name on the Hub, False for the path of a file."""
    return str(path).startswith(HUB)
