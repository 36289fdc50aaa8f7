"""`choosy push` uploads a tuned model, here to a stub of the hub on this machine."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partialmethod
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
import yaml
from huggingface_hub import HfApi
from tiny import command

from choosy.models.checksums import refuse_changed
from choosy.push import name_base, push


@dataclass
class Hub:
    """What the stub was asked for, and the files that were committed."""

    url: str = ""
    asked: list[tuple[str, Any]] = field(default_factory=list)
    tokens: set[str | None] = field(default_factory=set)
    files: dict[str, bytes] = field(default_factory=dict)


@pytest.fixture
def hub() -> Iterator[Hub]:
    seen = Hub()

    class Answers(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            seen.tokens.add(self.headers["Authorization"])
            lines = [json.loads(line) for line in body.splitlines()]
            seen.asked.append((self.path, lines[0]))
            if self.path.endswith("/create"):
                self.answer({"url": f"{seen.url}/me/tuned", "id": "me/tuned"})
            elif "/preupload/" in self.path:
                kinds = {"uploadMode": "regular", "shouldIgnore": False}
                self.answer({"files": [{"path": file["path"], **kinds} for file in lines[0]["files"]]})
            elif "/commit/" in self.path:
                found = [line["value"] for line in lines if line["key"] == "file"]
                seen.files |= {file["path"]: base64.b64decode(file["content"]) for file in found}
                self.answer({"commitUrl": f"{seen.url}/me/tuned/commit/1", "commitOid": "1", "success": True})
            else:
                self.answer({"errors": [], "warnings": []})

        def do_GET(self) -> None:
            self.answer({"id": "me/tuned", "sha": "0", "siblings": []})

        def answer(self, found: dict[str, Any]) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(json.dumps(found).encode())

        def log_message(self, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        seen.url = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield seen
        server.shutdown()


def test_a_run_is_uploaded_with_its_card_and_no_path_of_this_machine(play, hub, tmp_path, monkeypatch):
    run = play("rounds=1", "data.heldout=null")
    with pytest.raises(ValueError, match=r"was tuned on the folder .* of this machine; type --base with its hub id"):
        push([str(run.run_dir), "me/tuned"])
    for name, value in {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_TOKEN": "hf_of_the_test"}.items():
        monkeypatch.setenv(name, value)
    words = ["-m", "choosy", "push", run.run_dir, "me/tuned", "--base", "owner/tiny"]
    done = command(*words, folder=tmp_path, fresh=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"{hub.url}/me/tuned"
    assert "hf_of_the_test" not in done.stdout + done.stderr
    assert hub.tokens == {"Bearer hf_of_the_test"}
    (created,) = (asked for path, asked in hub.asked if path == "/api/repos/create")
    assert created["visibility"] == "private"
    assert {"adapter_model.safetensors", "adapter_config.json", "tokenizer.json", "README.md"} <= {*hub.files}
    assert (
        hub.files["adapter_model.safetensors"] == (run.run_dir / "adapter" / "adapter_model.safetensors").read_bytes()
    )
    assert json.loads(hub.files["adapter_config.json"])["base_model_name_or_path"] == "owner/tiny"
    card = hub.files["README.md"].decode()
    assert card.startswith("---\nbase_model: owner/tiny\n")
    assert "base_model_relation: adapter\n" in card
    assert "| base model | owner/tiny |" in card
    assert "\nowner/tiny tuned on preferences" in card
    assert card.count('from_pretrained("me/tuned")') == 2
    assert "curves.png" in hub.files
    for name, content in hub.files.items():
        (file := tmp_path / "downloaded" / name).parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    assert "SHA256SUMS" in hub.files
    refuse_changed(tmp_path / "downloaded")
    assert not [name for name, content in hub.files.items() if str(tmp_path.parent).encode() in content]
    here = json.loads((run.run_dir / "adapter" / "adapter_config.json").read_text())
    assert here["base_model_name_or_path"] == run.policy.source.name, "the run's own adapter stays as it is"
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    failed = command(*words, folder=tmp_path, fresh=True)
    assert failed.returncode != 0
    said = failed.stderr.splitlines()[-1]
    assert "me/tuned is not uploaded: the Hugging Face hub cannot be reached at http://127.0.0.1:1 (" in said


@pytest.mark.parametrize(("words", "folder"), [(["export=merged"], "merged"), (["export=gguf"], "gguf")])
def test_each_form_of_a_model_is_uploaded_without_a_path_of_this_machine(words, folder, play, hub, tmp_path):
    run = play(*words, "rounds=1", "data.heldout=null")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        patched.setattr("huggingface_hub.hf_api.HfApi.__init__", partialmethod(HfApi.__init__, hub.url, token="hf_t"))
        push([str(run.run_dir / folder), "me/tuned", "--base", "owner/tiny"])
    assert {"README.md", "curves.png", "SHA256SUMS"} <= {*hub.files}
    head = yaml.safe_load(hub.files["README.md"].decode().split("---\n")[1])
    wanted = {"merged": ("transformers", "finetune"), "gguf": ("gguf", "quantized")}[folder]
    assert (head["library_name"], head["base_model_relation"]) == wanted
    assert head["base_model"] == "owner/tiny"
    loads = {"merged": 'from_pretrained("me/tuned")', "gguf": "llama-server -hf me/tuned"}[folder]
    assert loads in hub.files["README.md"].decode()
    assert not [name for name, content in hub.files.items() if str(tmp_path.parent).encode() in content]


@pytest.mark.parametrize("base", ["gpt2", "owner/model"])
def test_a_hub_id_with_or_without_an_owner_names_the_base(base, tmp_path):
    config = tmp_path / "adapter_config.json"
    config.write_text(json.dumps({"base_model_name_or_path": base}))
    name_base(tmp_path, None)
    assert json.loads(config.read_text())["base_model_name_or_path"] == base
    config.write_text('{"base_model_name_or_path": "/data/tiny"}')
    with pytest.raises(ValueError, match=r"--base ~/tiny is no hub id; type --base with its hub id, such as Hugging"):
        name_base(tmp_path, "~/tiny")
    name_base(tmp_path, base)
    assert json.loads(config.read_text())["base_model_name_or_path"] == base


@pytest.mark.parametrize("base", ["/data/tiny", "../tiny", "data/models/tiny", "here"])
def test_a_folder_of_this_machine_names_no_base(base, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": base}))
    with pytest.raises(ValueError, match=r"tuned on the folder .* of this machine; type --base with its hub id, such"):
        name_base(tmp_path, None)


def test_a_name_without_an_owner_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"tuned is no repository of the hub, which is OWNER/NAME, such as me/tuned"):
        push([str(tmp_path), "tuned"])


def test_a_card_of_another_s_stays_as_it_is_and_only_the_model_goes_up(hub, tmp_path, monkeypatch):
    card = '# Mine\nllama-server -m a.gguf\nmodel = AutoModel.from_pretrained("here")\n'
    for name, text in {"README.md": card, ".env": "KEY=1", "notes.txt": "x", "a.gguf": "GGUF"}.items():
        (tmp_path / name).write_text(text)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.hf_api.HfApi.__init__", partialmethod(HfApi.__init__, hub.url, token="hf_t"))
    push([str(tmp_path), "me/tuned", "--base", "owner/tiny"])
    assert hub.files == {"README.md": card.encode(), "a.gguf": b"GGUF"}
