"""The Space: its folder, pinned to what is installed; pushed to a loopback hub and watched; started as a Space starts it."""

import importlib.metadata
import json
import os
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from circuitsae.cli.main import run
from circuitsae.cli.space import SpaceSettings, build_folder, push, read_settings, requirements
from circuitsae.errors import CircuitsaeError, FetchError, InputError
from tests.hub.server import Hub, Space

pytest.importorskip("gradio", reason="gradio, which the app needs, is not installed here")

ROOT = Path(__file__).parents[2]
NAME = "me/circuitsae"


@pytest.fixture(scope="module")
def settings() -> SpaceSettings:
    return read_settings(ROOT / "spaces.yaml")


@pytest.fixture(scope="module")
def built(settings: SpaceSettings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("space") / "built"
    build_folder(settings, folder)
    return folder


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A folder that is quickly uploaded."""
    folder = tmp_path / "small"
    (folder / "circuitsae").mkdir(parents=True)
    (folder / "app.py").write_text("print()\n")
    (folder / "circuitsae" / "weights.bin").write_bytes(bytes(range(256)) * 10)
    return folder


@pytest.fixture
def logged_in(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> Hub:
    monkeypatch.setenv("HF_TOKEN", hub.token)
    return hub


# The folder


def test_the_folder_holds_what_a_space_needs(built: Path) -> None:
    assert sorted(path.name for path in built.iterdir()) == [
        "README.md", "app.py", "circuitsae", "gradio_app", "requirements.txt",
    ]  # fmt: skip
    for inside in ("circuitsae/presets/tiny/model/model.safetensors", "circuitsae/py.typed", "gradio_app/zero.py"):
        assert (built / inside).read_bytes() == (ROOT / inside).read_bytes()
    assert not [path for path in built.rglob("*") if path.suffix == ".pyc" or "__pycache__" in path.parts]


def test_the_readmes_front_matter_is_the_card(built: Path, settings: SpaceSettings) -> None:
    _, front, body = (built / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    assert yaml.safe_load(front) == settings.card
    assert settings.card["title"] == "circuitsae" and "deploy" not in front
    assert body.startswith("\n# circuitsae\n")


def test_every_requirement_is_pinned_and_is_what_is_installed_here(built: Path) -> None:
    lines = (built / "requirements.txt").read_text().splitlines()
    assert lines[0] == "--extra-index-url https://download.pytorch.org/whl/cpu"
    assert all(line.count("==") == 1 for line in lines[1:])
    names = {line.partition("==")[0] for line in lines[1:]}
    assert names >= {"gradio", "torch", "transformer-lens", "huggingface-hub", "networkx", "safetensors", "gguf"}
    assert not names & {"pytest", "circuitsae", "sae-lens", "playwright"}
    pins = dict(line.split("==") for line in lines[1:])
    for name, version in pins.items():
        assert importlib.metadata.version(name).partition("+")[0] == version
        for text in importlib.metadata.requires(name) or []:
            need = Requirement(text)
            if need.marker is None or need.marker.evaluate({"extra": ""}):
                pinned = pins[canonicalize_name(need.name)]  # everything that is needed is there, and fits
                assert need.specifier.contains(pinned, prereleases=True), f"{name} wants {need}, pinned is {pinned}"


def test_on_a_gpu_torch_is_the_one_with_cuda(settings: SpaceSettings) -> None:
    gpu = SpaceSettings(settings.card, "zero-a10g")
    assert not [line for line in requirements(gpu) if line.startswith("-")]


def test_another_gradio_than_the_tested_one_is_not_deployed(settings: SpaceSettings, tmp_path: Path) -> None:
    other = SpaceSettings(settings.card | {"sdk_version": "5.0.0"})
    with pytest.raises(
        InputError, match=r"asks for gradio 5\.0\.0 \(sdk_version\), and \S+ is installed and tested here"
    ):
        build_folder(other, tmp_path / "built")
    assert not (tmp_path / "built").exists()


def test_a_folder_with_something_in_it_is_left_alone(settings: SpaceSettings, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match="is there and not empty; name an empty folder, or a new one"):
        build_folder(settings, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


# The settings

CARD = 'title: t\nsdk: gradio\nsdk_version: "6.31.0"\npython_version: "3.11"\n'


def test_what_is_under_deploy_is_for_the_hub(tmp_path: Path) -> None:
    path = tmp_path / "spaces.yaml"
    path.write_text(CARD + "emoji: x\ndeploy:\n  hardware: t4-small\n  sleep: 3600\n  variables:\n    A: b\n")
    settings = read_settings(path)
    assert (settings.hardware, settings.sleep, settings.variables) == ("t4-small", 3600, {"A": "b"})
    assert settings.card["emoji"] == "x" and "deploy" not in settings.card


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("- a\n", "holds no table"),
        ("a: b: c\n", "is not YAML"),
        ("[" * 400, "is not YAML"),
        ("!!python/object/apply:os.system [true]\n", "is not YAML"),
        (CARD + "deploy:\n  hardwear: x\n", "the key 'hardwear' is unknown in deploy; did you mean 'hardware'"),
        (CARD + "deploy: [1]\n", r"deploy is \[1\]; expected a table with hardware, variables, sleep"),
        (CARD + "deploy:\n  variables:\n    A: 1\n", "expected names and texts"),
        (CARD + "deploy:\n  sleep: long\n", "deploy.sleep is 'long'; expected a number of seconds"),
        (CARD + "deploy:\n  hardware: 3\n", "deploy.hardware is 3; expected a name such as cpu-basic"),
        (CARD.replace("gradio\n", "docker\n"), "expected sdk: gradio and app_file: app.py"),
        (CARD.replace('"6.31.0"', "6.31"), r"sdk_version is 6\.31; expected text \(quote versions\)"),
    ],
)
def test_settings_that_cannot_be_used_are_said_so(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "spaces.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=said) as caught:
        read_settings(path)
    assert "\n" not in str(caught.value)


# The hub


def test_a_space_is_made_filled_and_watched_until_it_runs(logged_in: Hub, small: Path) -> None:
    hub, said = logged_in, []
    settings = SpaceSettings({}, "t4-small", {"CIRCUITSAE_PRESET": "tiny"}, 3600)
    url = push(NAME, settings, small, is_private=True, pause=0.01, say=said.append)
    space = hub.spaces[NAME]
    assert space.created["sdk"] == "gradio" and space.created["type"] == "space"
    assert space.created.get("private") or space.created.get("visibility") == "private"
    assert space.created["hardware"] == "t4-small"
    assert space.files == {
        "app.py": b"print()\n", "circuitsae/weights.bin": bytes(range(256)) * 10,
    } or set(space.files) == {"app.py", "circuitsae/weights.bin", ".gitattributes"}  # fmt: skip
    kinds = {kind: value for _, kind, value in space.settings}
    assert kinds["variables"]["key"] == "CIRCUITSAE_PRESET" and kinds["variables"]["value"] == "tiny"
    assert kinds["sleeptime"] == {"seconds": 3600}
    assert url.endswith(f"/spaces/{NAME}") or NAME in url
    assert said == [f"{NAME}: uploading", f"{NAME}: app starting", f"{NAME}: running"]


def test_a_space_that_is_there_is_updated_and_what_left_the_package_leaves_it(logged_in: Hub, small: Path) -> None:
    logged_in.spaces[NAME] = Space(files={"old.py": b"", "app.py": b"old"}, stages=["RUNNING"])
    push(NAME, SpaceSettings({}, "t4-small"), small, pause=0.01)
    space = logged_in.spaces[NAME]
    assert "old.py" not in space.files and space.files["app.py"] == b"print()\n"
    assert next(value for _, kind, value in space.settings if kind == "hardware")["flavor"] == "t4-small"


@pytest.mark.parametrize("stage", ["BUILD_ERROR", "RUNTIME_ERROR", "CONFIG_ERROR"])
def test_the_log_of_a_space_that_fails_is_shown(logged_in: Hub, small: Path, stage: str) -> None:
    import huggingface_hub

    if not hasattr(huggingface_hub.HfApi, "fetch_space_logs"):
        pytest.skip("this release of huggingface_hub can't fetch logs")
    logged_in.spaces[NAME] = Space(stages=["BUILDING", stage])
    logged_in.logs.append("token is hf_abcdefghijklmnop")
    said: list[str] = []
    with pytest.raises(CircuitsaeError, match=rf"The Space {NAME} does not run: {stage}; the end of its log is above"):
        push(NAME, SpaceSettings({}), small, pause=0.01, say=said.append)
    assert "ModuleNotFoundError: No module named 'nothing'" in said
    assert "token is (secret)" in said
    kind = "run" if stage == "RUNTIME_ERROR" else "build"
    assert [path for _, path, _ in logged_in.requests if path.endswith(f"/logs/{kind}")]


def test_a_space_that_never_runs_is_not_waited_for_without_end(logged_in: Hub, small: Path) -> None:
    logged_in.spaces[NAME] = Space(stages=["BUILDING"])
    with pytest.raises(CircuitsaeError, match="was not running after 0 s, its stage is BUILDING"):
        push(NAME, SpaceSettings({}), small, pause=0.01, wait=0.05)
    push(NAME, SpaceSettings({}), small, wait=None)


def test_who_is_not_logged_in_is_told_so(hub: Hub, small: Path) -> None:
    with pytest.raises(
        FetchError, match=r"Nobody is logged in to the Hugging Face hub: hf auth login, or set HF_TOKEN"
    ):
        push(NAME, SpaceSettings({}), small)
    assert hub.requests == []


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (401, r"does not let you write the Space me/circuitsae \(status 401\): log in as who may"),
        (403, r"does not let you write the Space me/circuitsae \(status 403\): log in as who may"),
        (402, r"for paid plans alone \(status 402\); choose other hardware under deploy in spaces.yaml"),
        (500, "could not be pushed: the hub answered with status 500"),
    ],
)
def test_what_the_hub_refuses_is_one_sentence(
    logged_in: Hub, small: Path, status: int, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    logged_in.failures = {"/repos/create": [status] * 20}
    with pytest.raises(FetchError, match=said) as caught:
        push(NAME, SpaceSettings({}), small)
    assert "\n" not in str(caught.value) and logged_in.token not in str(caught.value)


@pytest.mark.parametrize("name", ["circuitsae", "a/b/c", "../x", "me/", "me/a b"])
def test_another_name_is_none_of_a_space(name: str, small: Path) -> None:
    with pytest.raises(InputError, match="is no Space's name; expected ORG/NAME"):
        push(name, SpaceSettings({}), small)


# The command


def test_a_dry_run_asks_nobody(hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "built"
    status = run(["space", "push", NAME, "--dry-run", "--folder", str(folder), "--settings", str(ROOT / "spaces.yaml")])
    assert status == 0 and hub.requests == [] and (folder / "app.py").is_file()
    assert f"Built in {folder}; try it there with: python app.py" in capsys.readouterr().out


def test_the_command_pushes_and_says_where(logged_in: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    logged_in.spaces[NAME] = Space(stages=["RUNNING"])
    assert run(["space", "push", NAME, "--json"]) == 0
    captured = capsys.readouterr()
    result = json.loads(captured.out)
    assert result["space"] == NAME and result["files"] > 100 and NAME in result["url"]
    assert f"{NAME}: running" in captured.err
    assert "circuitsae/__init__.py" in logged_in.spaces[NAME].files
    assert logged_in.token not in captured.out + captured.err


def test_settings_that_are_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["space", "push", NAME, "--dry-run", "--settings", str(tmp_path / "none.yaml")]) == 2
    assert "with the Space's settings; run this in circuitsae's checkout, or give --settings" in capsys.readouterr().err


# Started as a Space starts it


def free_port() -> int:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


def started(python: str, folder: Path, home: Path, port: int) -> "subprocess.Popen[bytes]":
    """Starts a built folder with nothing of this checkout, no token and no settings in reach."""
    kept = ("PATH", "LANG", "LD_LIBRARY_PATH", "TMPDIR")
    environment = {name: os.environ[name] for name in kept if name in os.environ}
    environment |= {
        "HOME": str(home), "GRADIO_SERVER_PORT": str(port), "GRADIO_SERVER_NAME": "127.0.0.1", "HF_HUB_OFFLINE": "1",
        "SPACE_ID": NAME, "CIRCUITSAE_PRESET": "tiny", "GRADIO_ANALYTICS_ENABLED": "False", "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    return subprocess.Popen(
        [python, "app.py"], cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def answers(process: "subprocess.Popen[bytes]", port: int, seconds: float) -> str:
    """Returns the page once it is served."""
    end = time.monotonic() + seconds
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    while time.monotonic() < end and process.poll() is None:
        try:
            with opener.open(f"http://127.0.0.1:{port}/config", timeout=5) as answer:
                return answer.read().decode()
        except OSError:
            time.sleep(0.2)
    process.kill()
    output = process.stdout.read().decode() if process.stdout else ""
    raise AssertionError(f"no page at {port}:\n{output[-3000:]}")


def stop(process: "subprocess.Popen[bytes]") -> str:
    process.terminate()
    try:
        output, _ = process.communicate(timeout=20)
    except subprocess.TimeoutExpired:
        process.kill()
        output, _ = process.communicate()
    return output.decode()


def test_the_built_folder_starts_and_serves(built: Path, tmp_path: Path) -> None:
    said = subprocess.run(
        [sys.executable, "-c", "import circuitsae, gradio_app; print(circuitsae.__file__, gradio_app.__file__)"],
        cwd=built, env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"}, capture_output=True, text=True,
    )  # fmt: skip
    assert said.stdout.split() == [str(built / name / "__init__.py") for name in ("circuitsae", "gradio_app")]
    port = free_port()
    process = started(sys.executable, built, tmp_path, port)
    try:
        config = json.loads(answers(process, port, 240))
        assert config["mode"] == "blocks" and not config["analytics_enabled"]
    finally:
        output = stop(process)
    assert "Traceback" not in output


@pytest.mark.slow
@pytest.mark.skipif(
    "CIRCUITSAE_TEST_SPACE" not in os.environ, reason="installs torch anew; CIRCUITSAE_TEST_SPACE=1 does"
)
def test_the_built_folder_starts_in_a_fresh_environment(built: Path, tmp_path: Path) -> None:
    """As the hub does it: a new environment, pip with the folder's requirements, python app.py."""
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True)
    python = str(tmp_path / "venv" / "bin" / "python")
    pip = [
        python,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "-r",
        str(built / "requirements.txt"),
    ]
    done = subprocess.run(pip, capture_output=True, text=True, env={"PIP_RETRIES": "1", **os.environ})
    assert done.returncode == 0, done.stderr
    port = free_port()
    process = started(python, built, tmp_path, port)
    try:
        assert json.loads(answers(process, port, 600))["mode"] == "blocks"
    finally:
        assert "Traceback" not in stop(process)


# ZeroGPU


def test_without_spaces_a_marked_function_is_left_as_it_is() -> None:
    from gradio_app import zero

    def double(x: int) -> int:
        return 2 * x

    if zero._spaces is None:
        assert zero.on_gpu(double) is double and zero.on_gpu(duration=5)(double) is double


def test_with_spaces_a_marked_function_is_marked_there(monkeypatch: pytest.MonkeyPatch) -> None:
    from gradio_app import zero

    class Spaces:
        asked: list[object] = []

        @classmethod
        def GPU(cls, duration: object) -> object:
            cls.asked.append(duration)
            return lambda function: ("marked", function)

    monkeypatch.setattr(zero, "_spaces", Spaces)
    assert zero.on_gpu(len) == ("marked", len) and zero.on_gpu(duration=9)(len) == ("marked", len)
    assert Spaces.asked == [zero.SECONDS, 9]


def test_the_app_imports_it_before_torch(built: Path) -> None:
    lines = (built / "app.py").read_text().splitlines()
    imports = [line for line in lines if line.startswith(("import gradio_app", "from gradio_app"))]
    assert imports[0].startswith("import gradio_app.zero")
