"""Build a latent index in a process of its own, slowly enough to be killed; prints how many documents it compressed.

build_latents.py DIRECTORY DOCUMENTS NUM_PROCESSES PROCESS_INDEX SECONDS_A_BATCH
"""

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import tiny_latents

from qwen_grafts.recipes.latent_build import build_index


def main(directory: str, documents: str, num_processes: str, process_index: str, seconds: str) -> None:
    compressed = 0

    def compress(texts: list[str]) -> list:
        nonlocal compressed
        compressed += len(texts)
        time.sleep(float(seconds))
        return tiny_latents.compress(texts)

    build_index(
        directory,
        tiny_latents.documents(int(documents)),
        compress,
        **tiny_latents.SETTINGS,
        **tiny_latents.BUILD,
        num_processes=int(num_processes),
        process_index=int(process_index),
    )
    print(compressed)


if __name__ == "__main__":
    main(*sys.argv[1:])
