"""The Hugging Face Hub: downloads that are checked, and the model card."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, ModelCard, ModelCardData, hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from .encoders.backbone import PREFIX
from .errors import InvalidInputError, WeightsError, WeightsNotFoundError
from .files import sha256

__all__ = ["FILE_NAME", "HUB_PREFIX", "download", "model_card", "record_json", "upload"]

FILE_NAME = "model.safetensors"
HUB_PREFIX = "hf-hub:"
DOWNLOAD_ATTEMPTS = 3


def download(repo: str) -> Path:
    """Return the path of a Hub repository's `model.safetensors`, "org/repo[@revision]", out of the cache if it is there.

    A revision that is a full commit hash is asked for only once. The file is checked against the hash that the Hub names it by.
    """
    repo_id, _, revision = repo.partition("@")
    where = f"{HUB_PREFIX}{repo}"
    try:
        path = _with_retries(lambda: Path(hf_hub_download(repo_id, FILE_NAME, revision=revision or None)))
    except HFValidationError as e:
        raise InvalidInputError(
            f"{where!r} is no repository name: give 'hf-hub:org/repo' or 'hf-hub:org/repo@revision'."
        ) from e
    except GatedRepoError as e:
        raise WeightsNotFoundError(f"{where} is gated: accept its terms on its page and log in with `hf auth login`.") from e
    except RevisionNotFoundError as e:
        raise WeightsNotFoundError(f"{where} has no revision {revision!r}: check it, or leave it out.") from e
    except RepositoryNotFoundError as e:
        raise WeightsNotFoundError(
            f"there is no {where}, or it is private: check the name, or log in with `hf auth login`."
        ) from e
    except LocalEntryNotFoundError as e:
        raise WeightsNotFoundError(
            f"{where} is not in the local cache and the Hub cannot be reached (is HF_HUB_OFFLINE set? {e.__cause__ or ''}): "
            "connect once, or pass a file."
        ) from e
    except EntryNotFoundError as e:
        raise WeightsNotFoundError(f"{where} has no {FILE_NAME}: only safetensors are loaded, ask its owner to convert.") from e
    except (HTTPError, OSError) as e:
        raise WeightsError(f"{where} could not be downloaded ({e}): try again later, or pass a file.") from e
    blob = path.resolve()
    # The cache names a file after its sha256. It is there as a link where the system has links.
    if len(blob.name) == 64 and blob.name != sha256(blob):
        blob.unlink()
        path.unlink(missing_ok=True)
        raise WeightsError(f"{where} arrived damaged, its sha256 is not {blob.name}, and was removed: try again.")
    return path


def model_card(name: str, checkpoint: str, training: dict[str, Any] | None = None) -> str:
    """Return a Hub model card, of an encoder's name, with how to load the weights from `checkpoint` and how they were made."""
    in_timm = checkpoint if checkpoint.startswith(HUB_PREFIX) else f"local-dir:{checkpoint}"
    data = ModelCardData(
        license="apache-2.0",
        library_name="groupmix-sam",
        pipeline_tag="mask-generation",
        tags=["segment-anything", "timm", "groupmixformer"],
    )
    alone = f'The encoder alone: `timm.create_model("{in_timm}", pretrained=True)`, after `import groupmix_sam`.\n\n'
    adapted = f"Adapted to {training['adapted_to']}.\n\n" if training and "adapted_to" in training else ""
    record = "Not recorded." if training is None else f"```json\n{record_json(training, indent=2)}\n```"
    text = f"""---
{data.to_yaml()}
---

# {name}

Segment Anything with the encoder `{name}`, for groupmix-sam (Group-Mix SAM, arXiv 2403.10053).

```python
from groupmix_sam import build_sam_groupmix
from segment_anything import SamPredictor

predictor = SamPredictor(build_sam_groupmix("{checkpoint}"))
```

{"" if name.startswith(PREFIX) else alone}## Training

{adapted}{record}
"""
    return str(ModelCard(text).content)


def _with_retries(fetch: Callable[[], Path]) -> Path:
    """Call `fetch`, and again after a while if the server fails; the Hub's client does not repeat every such request itself."""
    for attempt in range(1, DOWNLOAD_ATTEMPTS + 1):
        try:
            return fetch()
        except HfHubHTTPError as e:
            status = getattr(e.response, "status_code", 0)
            if status < 500 or attempt == DOWNLOAD_ATTEMPTS:
                raise
            time.sleep(2 ** (attempt - 1))
    raise AssertionError("unreachable")


def upload(folder: str | Path, repo: str, *, private: bool, message: str) -> str:
    """Upload a folder to a Hub repository "org/repo", made if need be; return the commit's address.

    Raises:
        InvalidInputError: that is no name, or it is to be private, is there already and is public.
        WeightsError: the Hub cannot be reached, or refuses.
    """
    api = HfApi()
    try:
        api.create_repo(repo, private=private or None, exist_ok=True)  # None leaves it to the organization
        if private and not api.repo_info(repo).private:  # the Hub changes nothing of a repository that is there
            raise InvalidInputError(f"{repo} is there and public: make it private on its settings page, or give another name.")
        return str(api.upload_folder(repo_id=repo, folder_path=folder, commit_message=message).commit_url)
    except HFValidationError as e:
        raise InvalidInputError(f"{repo!r} is no repository name: give 'org/repo'.") from e
    except (HTTPError, OSError) as e:
        raise WeightsError(f"could not upload to {repo} ({e}): log in with `hf auth login` and try again.") from e


def record_json(training: dict[str, Any], indent: int | None = None) -> str:
    try:
        return json.dumps(training, indent=indent)
    except TypeError as e:
        raise InvalidInputError(f"the training record cannot be written as JSON ({e}): use plain Python values.") from e
