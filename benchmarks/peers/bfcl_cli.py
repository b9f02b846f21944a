"""The released program `bfcl` with one more model name, `looptool`, whose answers it reads as Qwen's.

    BFCL_PROJECT_ROOT=FOLDER python bfcl_cli.py evaluate --model looptool --test-category all --partial-eval

FOLDER is what `looptool eval bfcl --export FOLDER` wrote. Runs in an environment with all that `bfcl` imports
(README.md).
"""

from bfcl_eval.__main__ import cli
from bfcl_eval.constants.model_config import MODEL_CONFIG_MAPPING, ModelConfig
from bfcl_eval.model_handler.local_inference.qwen_fc import QwenFCHandler

MODEL_CONFIG_MAPPING["looptool"] = ModelConfig(
    model_name="looptool", display_name="looptool", url="", org="", license="", model_handler=QwenFCHandler
)

if __name__ == "__main__":
    cli()
