"""The unmodified client, `datasets`, `transformers` and `timm` against the Hub of `hub_server`.

Each client runs in a process of its own, since these libraries read HF_ENDPOINT at import.
"""

import json
import textwrap
import urllib.error
import urllib.request

import numpy as np
import pytest

WEIGHTS = 12_000_000  # bytes: more than the client's download piece of 10 MiB
MIB = 2**20
# How the client uploads large files: over Xet as installed, over LFS where that is switched off.
TRANSPORTS = {
    "xet": ({}, "POST", "/v1/xorbs/"),
    "lfs": ({"HF_HUB_DISABLE_XET": "1"}, "PUT", "/lfs/"),
}
PRELUDE = """
import json, os
from huggingface_hub import HfApi, hf_hub_download, snapshot_download
api = HfApi()

def error_of(call, *args, **kwargs):
    try:
        call(*args, **kwargs)
    except Exception as error:
        return type(error).__name__
"""


@pytest.fixture
def client(hub, run_python, tmp_path):
    """`client(code, **env)`: what the code prints last, as JSON, from a process that uses `hub`."""

    def run(code, **env):
        code = PRELUDE + textwrap.dedent(code)
        result = run_python(code, env={**hub.env, **env}, cwd=tmp_path)
        assert result.returncode == 0, result.stderr
        return json.loads(result.stdout.splitlines()[-1])

    return run


@pytest.fixture
def folder(tmp_path):
    """A folder such as a saved model: large weights, text, a figure in a subfolder."""
    folder = tmp_path / "model"
    (folder / "figures").mkdir(parents=True)
    weights = np.random.default_rng(0).standard_normal(WEIGHTS // 4, dtype=np.float32)
    (folder / "model.safetensors").write_bytes(weights.tobytes())
    (folder / "config.json").write_text('{"model_type": "resnet", "num_channels": 1}')
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n# A model\n")
    (folder / "figures" / "roc.png").write_bytes(bytes(range(256)))
    return folder


def contents(folder):
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def served(hub, repo_id):
    return {path: hub.read(repo_id, path) for path in hub.files(repo_id)}


def requests(hub, method, path_prefix):
    return [r for r in hub.requests if r.method == method and r.path.startswith(path_prefix)]


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_what_is_uploaded_is_downloaded(hub, client, folder, tmp_path, transport):
    env, method, path = TRANSPORTS[transport]
    upload = f"api.upload_folder(folder_path={str(folder)!r}, repo_id='org/model').oid"
    *answers, first, again = client(
        f"""
        print(json.dumps([
            api.whoami()["name"],
            api.create_repo("org/model").repo_id,
            error_of(api.create_repo, "org/model"),
            api.create_repo("org/model", exist_ok=True).repo_id,
            {upload},
            {upload},
        ]))
        """,
        **env,
    )
    assert answers == ["tester", "org/model", "HfHubHTTPError", "org/model"]
    assert served(hub, "org/model") == contents(folder)
    assert hub.repo("org/model").refs == {"main": first}
    assert again == first, "an unchanged folder makes no commit"
    (weights,) = requests(hub, method, path)
    assert 0.9 * WEIGHTS < weights.received < 1.01 * WEIGHTS, "and is not sent again"

    snapshot, readme = client(
        """
        readme = hf_hub_download("org/model", "README.md", local_dir="readme")
        print(json.dumps([snapshot_download("org/model"), readme]))
        """,
        HF_HOME=str(tmp_path / "empty"),
        **env,
    )
    snapshot = tmp_path / snapshot
    assert contents(snapshot) == contents(folder)
    assert (tmp_path / readme).read_bytes() == (folder / "README.md").read_bytes()


def test_revisions_and_what_does_not_exist(hub, client):
    first = hub.add_files("org/model", {"config.json": b"1"})
    hub.add_files("org/model", {"config.json": b"2", "model.safetensors": b"weights"})
    old, new, *errors = client(
        f"""
        def read(**kwargs):
            return open(hf_hub_download("org/model", "config.json", **kwargs)).read()
        print(json.dumps([
            read(revision={first!r}),
            read(),
            error_of(read, revision="no-such-branch"),
            error_of(hf_hub_download, "org/model", "model.safetensors", revision={first!r}),
            error_of(hf_hub_download, "org/nothing", "config.json"),
            error_of(hf_hub_download, "org/nothing", "config.json", token=False),
            error_of(snapshot_download, "org/nothing"),
            error_of(api.upload_file, path_or_fileobj=b"", path_in_repo="x", repo_id="org/nothing"),
        ]))
        """
    )
    assert (old, new) == ("1", "2")
    missing = ["RepositoryNotFoundError"] * 4
    assert errors == ["RevisionNotFoundError", "RemoteEntryNotFoundError", *missing]


def test_branches_and_deletions(hub, client):
    files = {"config.json": b"1", "README.md": b"2", "figures/roc.png": b"3", "old/roc.png": b"4"}
    first = hub.add_files("org/model", files)
    branches, folder, *errors = client(
        f"""
        api.create_branch("org/model", branch="v1")
        api.upload_file(
            path_or_fileobj=b"new", path_in_repo="x", repo_id="org/model", revision="v1"
        )
        api.delete_file("README.md", "org/model")
        api.delete_folder("old", "org/model")
        file = dict(path_or_fileobj=b"", path_in_repo="x", repo_id="org/model")
        print(json.dumps([
            [ref.name for ref in api.list_repo_refs("org/model").branches],
            [entry.path for entry in api.list_repo_tree("org/model")],
            error_of(api.create_branch, "org/model", branch="v1"),
            error_of(api.delete_file, "README.md", "org/model"),
            error_of(api.upload_file, **file, parent_commit={first!r}),
        ]))
        """
    )
    assert branches == ["main", "v1"]
    assert folder == ["config.json", "figures"]
    assert errors == ["HfHubHTTPError", "RemoteEntryNotFoundError", "HfHubHTTPError"]
    assert set(hub.files("org/model")) == {"config.json", "figures/roc.png"}
    assert set(hub.files("org/model", revision="v1")) == {*files, "x"}


@pytest.mark.parametrize("token", ["hf_wrong", False])
def test_nothing_is_written_without_the_token(hub, client, token):
    hub.add_files("org/model", {"config.json": b"1"})
    errors = client(
        f"""
        api = HfApi(token={token!r})
        file = dict(path_or_fileobj=b"2", path_in_repo="config.json", repo_id="org/model")
        errors = [error_of(api.create_repo, "org/new"), error_of(api.upload_file, **file)]
        print(json.dumps(errors))
        """
    )
    assert errors == ["HfHubHTTPError", "HfHubHTTPError"]
    assert {request.status for request in requests(hub, "POST", "/api/")} == {401}
    assert list(hub.repos) == [("model", "org/model")]
    assert served(hub, "org/model") == {"config.json": b"1"}


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_an_upload_cut_once_is_tried_again(hub, client, folder, transport):
    env, *upload = TRANSPORTS[transport]
    hub.add_files("org/model", {})
    hub.drop_next(*upload, after_bytes=MIB)
    client(
        f"""
        commit = api.upload_folder(folder_path={str(folder)!r}, repo_id="org/model")
        print(json.dumps(commit.oid))
        """,
        **env,
    )
    assert [(r.status, r.received == MIB) for r in requests(hub, *upload)] == [
        (0, True),
        (200, False),
    ]
    assert served(hub, "org/model") == contents(folder)


def test_an_upload_that_fails_leaves_the_repository_as_it_was(hub, client, folder):
    """Over Xet the client gives up on the weights, over LFS on the commit that follows them."""
    before = hub.add_files("org/model", {"config.json": b"old"})
    upload = f"""
        call = dict(folder_path={str(folder)!r}, repo_id="org/model")
        print(json.dumps(error_of(api.upload_folder, **call)))
        """
    hub.drop_next("POST", "/v1/xorbs/", after_bytes=MIB)
    hub.drop_next("POST", "/v1/xorbs/", after_bytes=MIB)
    few_retries = {"HF_XET_CLIENT_RETRY_MAX_ATTEMPTS": "1", "HF_XET_CLIENT_RETRY_BASE_DELAY": "1ms"}
    assert client(upload, **few_retries) == "ConnectionError"
    hub.drop_next("POST", "/api/models/org/model/commit/", after_bytes=100)
    assert client(upload, HF_HUB_DISABLE_XET="1") == "RemoteProtocolError"
    assert hub.repo("org/model").refs == {"main": before}
    assert served(hub, "org/model") == {"config.json": b"old"}

    assert client(upload, HF_HUB_DISABLE_XET="1") is None
    assert served(hub, "org/model") == contents(folder)
    assert len(requests(hub, "PUT", "/lfs/")) == 1, "the weights were there already"


def test_a_download_cut_is_resumed(hub, client, tmp_path):
    weights = np.random.default_rng(0).bytes(WEIGHTS)
    hub.add_files("org/model", {"model.safetensors": weights})
    hub.drop_next("GET", "/org/model/resolve/", after_bytes=11 * MIB)
    path = client('print(json.dumps(hf_hub_download("org/model", "model.safetensors")))')
    assert (tmp_path / path).read_bytes() == weights
    first, second = requests(hub, "GET", "/org/model/resolve/")
    assert (first.status, first.sent) == (200, 11 * MIB)
    assert (second.status, second.sent) == (206, WEIGHTS - 10 * MIB)


def test_content_is_what_its_sha256_says(hub, client):
    """A damaged LFS upload, and a commit of content that never came, are refused."""
    put = urllib.request.Request(f"{hub.url}/lfs/{'0' * 64}", b"damaged", method="PUT")
    with pytest.raises(urllib.error.HTTPError, match="400"):
        urllib.request.urlopen(put)
    hub.add_files("org/model", {})
    lines = [
        {"key": "header", "value": {"summary": "weights"}},
        {"key": "file", "value": {"path": "config.json", "content": "MQ==", "encoding": "base64"}},
        {"key": "lfsFile", "value": {"path": "x.bin", "algo": "sha256", "oid": "0" * 64}},
    ]
    body = "\n".join(map(json.dumps, lines)).encode()
    headers = {"Authorization": f"Bearer {hub.token}"}
    post = urllib.request.Request(f"{hub.url}/api/models/org/model/commit/main", body, headers)
    with pytest.raises(urllib.error.HTTPError, match="400"):
        urllib.request.urlopen(post)
    assert hub.files("org/model") == {}


def test_datasets_are_pushed_and_loaded(hub, client, tmp_path):
    make = """
        from datasets import ClassLabel, Dataset, DatasetDict, Features, Image
        import numpy as np
        import PIL.Image
        def rows(count):
            images = [PIL.Image.fromarray(np.full((8, 8), i, np.uint8)) for i in range(count)]
            return {"image": images, "label": [i % 2 for i in range(count)]}
        features = Features(image=Image(), label=ClassLabel(names=["NORMAL", "PNEUMONIA"]))
        splits = {"train": 6, "test": 4}
        data = {s: Dataset.from_dict(rows(n), features=features) for s, n in splits.items()}
        """
    client(
        make
        + """
        DatasetDict(data).push_to_hub("org/pushed")
        for split, dataset in data.items():
            dataset.to_parquet(f"parquet/{split}.parquet")
        api.create_repo("org/folder", repo_type="dataset")
        api.upload_folder(folder_path="parquet", repo_id="org/folder", repo_type="dataset")
        print(json.dumps(None))
        """
    )
    train = hub.read("org/folder", "train.parquet", repo_type="dataset")
    hub.add_files(
        "org/pushed",
        {"default/train/0000.parquet": train},
        repo_type="dataset",
        revision="refs/convert/parquet",
    )
    pushed, folder, converted, error = client(
        """
        from datasets import load_dataset
        def load(*args, **kwargs):
            loaded = load_dataset(*args, **kwargs)
            names = loaded["train"].features["label"].names
            grey = {s: [i.getpixel((0, 0)) for i in d["image"]] for s, d in loaded.items()}
            return [names, grey]
        print(json.dumps([
            load("org/pushed"),
            load("org/folder"),
            load("org/pushed", revision="refs/convert/parquet"),
            error_of(load, "org/nothing"),
        ]))
        """,
        HF_HOME=str(tmp_path / "empty"),
    )
    names = ["NORMAL", "PNEUMONIA"]
    grey = {"train": [0, 1, 2, 3, 4, 5], "test": [0, 1, 2, 3]}
    assert pushed == folder == [names, grey]
    assert converted == [names, {"train": grey["train"]}]
    assert error == "DatasetNotFoundError"


def test_timm_finds_pretrained_weights(client):
    """`pretrained=True` asks for `timm/<name>`; here a stranger's weights lie under that name."""
    equal = client(
        """
        import safetensors.torch
        import timm
        served = timm.create_model("resnet18").state_dict()
        name = "timm/resnet18.a1_in1k"
        api.create_repo(name)
        api.upload_file(
            repo_id=name,
            path_in_repo="model.safetensors",
            path_or_fileobj=safetensors.torch.save(served),
        )
        loaded = timm.create_model("resnet18", pretrained=True).state_dict()
        print(json.dumps(all(served[key].equal(loaded[key]) for key in served)))
        """
    )
    assert equal


def test_transformers_reads_a_config(hub, client):
    first = hub.add_files("org/model", {"config.json": b'{"model_type": "resnet", "depths": [1]}'})
    hub.add_files("org/model", {"config.json": b'{"model_type": "resnet", "depths": [2]}'})
    depths = client(
        f"""
        from transformers import AutoConfig
        revisions = [{{}}, {{"revision": {first!r}}}]
        configs = [AutoConfig.from_pretrained("org/model", **kwargs) for kwargs in revisions]
        print(json.dumps([config.depths for config in configs]))
        """
    )
    assert depths == [[2], [1]]


def test_an_isolated_process_does_not_see_the_checkout(run_python):
    code = "import importlib.util as u; print(u.find_spec('modeling') and u.find_spec('timm'))"
    assert "timm" in run_python(code).stdout
    assert run_python(code, isolated=True).stdout == "None\n"
    code = "import importlib.util as u; print(u.find_spec('timm').name)"
    assert run_python(code, isolated=True).stdout == "timm\n"
