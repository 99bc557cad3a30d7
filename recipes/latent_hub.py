"""A latent index on the Hub: a data set repository of Parquet files, with a manifest and a card.

data/train-00000-of-00002.parquet   id, passage, text, latents: what `datasets.load_dataset` reads
index.json                          settings of the index, counts, checksums of the Parquet files
README.md
"""

import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from huggingface_hub import DatasetCard, DatasetCardData, HfApi, cached_assets_path, hf_hub_download, snapshot_download
from huggingface_hub.errors import EntryNotFoundError

from .latent_rows import LatentSettings
from .latent_shards import BATCH_ROWS, MANIFEST, SHARD_BYTES, Shard, describe_file, file_problem, in_groups, write_json

DATA = "data"
_FORMAT = "parquet-1"

_CARD = """# {name}

A latent index of CLaRa: documents that a model compressed once into memory vectors. Questions are compared with these
vectors, and answered from them.

| | |
|---|---|
| documents | {documents:,} |
| passages | {passages:,} |
| fingerprint of the compressor | `{settings.fingerprint}` |
| compression rate | {settings.compression_rate} |
| memory vectors of a passage | {settings.num_memory_tokens} |
| values of a vector | {settings.hidden_size} ({settings.dtype}) |

The latents mean something only to the model with this fingerprint: `ClaraIndex.check` refuses any other.

```python
from qwen_grafts.recipes.latent_index import ClaraIndex

index = ClaraIndex.from_hub("{repo_id}")
```

The rows are a plain data set, too: `id` of the document, `passage` counted from 0 in it, `text`, `latents`.

```python
from datasets import load_dataset

rows = load_dataset("{repo_id}", split="train")
```
"""


def push_rows(
    batches: Iterable[pa.RecordBatch],
    settings: LatentSettings,
    counts: Mapping[str, int],
    folder: Path,
    repo_id: str,
    *,
    private: bool,
    revision: str | None,
    commit_message: str | None,
    token: str | None,
) -> str:
    """Publish the rows of an index; see `ClaraIndex.push_to_hub`.

    Args:
        batches, settings: of the index.
        counts: `documents` and `passages`.
        folder: a disk with room for the rows; what is written there is removed again.

    Returns:
        The commit.
    """
    api = HfApi(endpoint=os.environ.get("HF_ENDPOINT"), token=token)
    with tempfile.TemporaryDirectory(prefix=".push-", dir=folder) as temporary:
        staging = Path(temporary)
        files = _write_parquet(batches, settings, staging / DATA)
        values = {"format": _FORMAT, "settings": asdict(settings), **counts, "files": [asdict(file) for file in files]}
        write_json(staging / MANIFEST, values)
        _card(settings, counts, repo_id).save(staging / "README.md")
        api.create_repo(repo_id, repo_type="dataset", private=private, exist_ok=True)
        if revision is not None:
            api.create_branch(repo_id, repo_type="dataset", branch=revision, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repo_id,
            repo_type="dataset",
            folder_path=staging,
            revision=revision,
            commit_message=commit_message or f"Latents of {counts['documents']} documents",
            delete_patterns="*",
        )
    return commit.oid


def _write_parquet(batches: Iterable[pa.RecordBatch], settings: LatentSettings, folder: Path) -> list[Shard]:
    """Files of about `SHARD_BYTES`, named as `datasets` names them."""
    folder.mkdir()
    rows: list[int] = []
    for number, group in enumerate(in_groups(batches, SHARD_BYTES)):
        rows.append(0)
        # Latents hardly repeat: a dictionary of them would be larger than they are.
        options = {"use_dictionary": False, "compression": "zstd"}
        with pq.ParquetWriter(folder / f"{number:05d}", settings.features.arrow_schema, **options) as writer:
            for batch in group:
                writer.write_batch(batch)
                rows[-1] += batch.num_rows
    names = [f"train-{number:05d}-of-{len(rows):05d}.parquet" for number in range(len(rows))]
    paths = [(folder / f"{number:05d}").rename(folder / name) for number, name in enumerate(names)]
    return [describe_file(path, count) for path, count in zip(paths, rows, strict=True)]


def _card(settings: LatentSettings, counts: Mapping[str, int], repo_id: str) -> DatasetCard:
    files = {"split": "train", "path": f"{DATA}/*.parquet"}
    data = DatasetCardData(
        tags=["clara", "latent-index", "retrieval"],
        configs=[{"config_name": "default", "data_files": [files]}],
    )
    text = _CARD.format(name=repo_id.split("/")[-1], repo_id=repo_id, settings=settings, **counts)
    return DatasetCard(f"---\n{data.to_yaml()}\n---\n\n{text}")


def fetch_rows(
    repo_id: str, revision: str | None, token: str | None
) -> tuple[str, LatentSettings, Iterator[pa.RecordBatch]]:
    """An index that was published; see `ClaraIndex.from_hub`.

    Returns:
        The commit, the settings, and the rows, which are downloaded and checked when the first one is asked for.

    Raises:
        ValueError: the repository holds no index.
    """
    where = {"repo_type": "dataset", "token": token, "endpoint": os.environ.get("HF_ENDPOINT")}
    try:
        path = Path(hf_hub_download(repo_id, MANIFEST, revision=revision, **where))
        values = json.loads(path.read_text(encoding="utf-8"))
        if values["format"] != _FORMAT:
            raise ValueError(f"its format is {values['format']!r}, and this version of the package reads {_FORMAT!r}")
        settings, files = LatentSettings(**values["settings"]), [Shard(**file) for file in values["files"]]
    except EntryNotFoundError as error:
        raise ValueError(
            f"{repo_id} holds no latent index ({MANIFEST} is missing). Name a data set that "
            "`ClaraIndex.push_to_hub` made."
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{MANIFEST} of {repo_id} cannot be read: {type(error).__name__}: {error}.") from error
    commit = path.parent.name  # the cache has a folder for each commit, which a branch may leave meanwhile

    def rows() -> Iterator[pa.RecordBatch]:
        patterns = [f"{DATA}/*.parquet"]
        folder = Path(snapshot_download(repo_id, revision=commit, allow_patterns=patterns, **where)) / DATA
        problems = [problem for file in files if (problem := file_problem(folder, file))]
        if problems:
            raise ValueError(
                f"{len(problems)} of {len(files)} files of {repo_id} are not as they were pushed: "
                f"{'; '.join(problems)}. Remove the repository from the Hub's cache and try again."
            )
        for file in files:
            for batch in pq.ParquetFile(folder / file.name).iter_batches(BATCH_ROWS):
                yield pa.record_batch(batch.columns, schema=settings.features.arrow_schema)

    return commit, settings, rows()


def fetched_directory(repo_id: str, commit: str) -> Path:
    """Where a published index lies that nobody gave a folder: in the Hub's cache, by its commit."""
    namespace = repo_id.replace("/", "--")
    return cached_assets_path("qwen-grafts", namespace=namespace, subfolder="latent-index") / commit


__all__ = ["fetch_rows", "fetched_directory", "push_rows"]
