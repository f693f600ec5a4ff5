"""Plugins come, stay and go as a user does it: in environments of their own, with wheels, folders and an index.

The index is a folder of wheels (PIP_FIND_LINKS); nothing here reaches the network.
"""

import json
import os
import pty
import shutil
import signal
import ssl
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from hashlib import sha256
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import distributions, version
from pathlib import Path
from threading import Thread

import pytest
import wheels
from wheels import Done, Environment

PLUGIN = {"plugin.py": "from flowcore.plugin import hookimpl\n\n@hookimpl\ndef register_data(register): ...\n"}
LIBRARY = {"plugin.py": ""}


@pytest.fixture(scope="module")
def shared(ours: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """One environment for the whole module: making it is what takes time."""
    return wheels.environment(tmp_path_factory.mktemp("environment"), ours["flowplat"])


def site(place: Environment) -> Path:
    (found,) = place.folder.glob("lib/python*/site-packages")
    return found


@pytest.fixture
def place(shared: Environment) -> Iterator[Environment]:
    """The shared environment; what a test leaves in it is taken out again."""
    before = set(site(shared).iterdir())
    yield shared
    for path in set(site(shared).iterdir()) - before:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    shutil.rmtree(shared.home)
    shared.home.mkdir()


@pytest.fixture
def wind(tmp_path: Path) -> Path:
    return wheels.wheel(tmp_path / "wheels", "wind", PLUGIN)


def there(place: Environment) -> list[str]:
    """The distributions that are in the environment, besides flowplat, with their versions."""
    found = distributions(path=[str(site(place))])
    return sorted(f"{one.name} {one.version}" for one in found if one.name != "flowplat")


def library(folder: Path, name: str, version: str, *requires: str) -> Path:
    """A wheel that is no plugin: what plugins require."""
    made = wheels.wheel(folder, name, LIBRARY, distribution=name, version=version, requires=requires)
    points = f"{name}-{version}.dist-info/entry_points.txt"
    with zipfile.ZipFile(made) as archive:
        kept = {one: archive.read(one) for one in archive.namelist() if one != points}
    record = f"{name}-{version}.dist-info/RECORD"
    kept[record] = b"".join(line for line in kept[record].splitlines(keepends=True) if points.encode() not in line)
    with zipfile.ZipFile(made, "w") as archive:
        for one, content in kept.items():
            archive.writestr(one, content)
    return made


def catalog(folder: Path, wheel: Path, digest: str | None = None, **more: str) -> Path:
    """A catalogue of one plugin, ``wind``, whose release 1.0 is ``wheel``."""
    digest = sha256(wheel.read_bytes()).hexdigest() if digest is None else digest
    keys = {"plugin": "wind", "distribution": "flowplat-wind", "summary": "winds", "licence": "MIT"} | more
    text = "".join(f'{key} = "{value}"\n' for key, value in keys.items()) + "reviewed = 2026-01-31\n"
    text += f'[[releases]]\nversion = "1.0"\nurl = "{wheel.as_uri()}"\nsha256 = "{digest}"\nrequires = ">=0.1,<0.2"\n'
    (folder / "catalog.toml").write_text(text)
    return folder / "catalog.toml"


def refused(done: Done, code: int, *told: str) -> None:
    """One line says why, and nothing else happened."""
    assert done.returncode == code, done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("platform: ")
    for words in told:
        assert words in last
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_a_wheel_is_shown_installed_found_and_removed(place: Environment, wind: Path) -> None:
    done = place.platform("install", wind)
    refused(done, 2, "Install flowplat-wind 1.0?", "--yes")
    assert there(place) == []
    done = place.platform("install", wind, "--yes")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "wind\n"
    shown = done.stderr
    for text in (wind.as_uri(), sha256(wind.read_bytes()).hexdigest(), "MIT", "not reviewed", "platform run wind"):
        assert text in shown
    (row,) = json.loads(place.platform("list", "--json").stdout)
    assert (row["plugin"], row["distribution"], row["version"]) == ("wind", "flowplat-wind", "1.0")
    again = place.platform("install", wind)  # nothing to ask
    assert (again.returncode, again.stdout) == (0, "wind\n")
    assert "already" in again.stderr
    gone = place.platform("uninstall", "wind", "--yes")
    assert (gone.returncode, gone.stdout) == (0, "flowplat-wind\n")
    refused(place.platform("run", "wind"), 3, "'wind'", "platform search")
    refused(place.platform("uninstall", "wind"), 3, "no plugin named 'wind' is installed")


def test_a_no_is_a_no(place: Environment, wind: Path) -> None:
    def answer(text: bytes) -> Callable[[int], bytes]:
        def read(terminal: int) -> bytes:
            said = os.read(terminal, 4096)
            heard.append(said)
            if b"[y/N]" in said:
                os.write(terminal, text)
            return said

        return read

    heard: list[bytes] = []
    code = (
        "import os, sys; os.environ |= {'HOME': sys.argv[1], 'PIP_NO_INDEX': '1'}; os.execv(sys.argv[2], sys.argv[2:])"
    )
    script = str(place.folder / "bin" / "platform")
    for text, wanted in ((b"n\n", []), (b"y\n", ["flowplat-wind 1.0"])):
        command = [sys.executable, "-c", code, str(place.home), script, "install", str(wind)]
        assert pty.spawn(command, answer(text)) == 0
        assert there(place) == wanted
    assert b"nothing was installed" in b"".join(heard)


def test_a_release_of_the_catalogue(place: Environment, wind: Path, tmp_path: Path) -> None:
    there = catalog(tmp_path, wind)
    found = place.platform("search", "--catalog", there)
    assert "1.0, MIT, reviewed 2026-01-31" in found.stdout
    done = place.platform("install", "wind", "--catalog", there, "--yes")
    assert (done.returncode, done.stdout) == (0, "wind\n"), done.stderr
    assert "2026-01-31" in done.stderr
    assert "1.0 installed" in place.platform("search", "--catalog", there.as_uri()).stdout


def test_a_file_that_is_not_the_catalogues_is_refused_by_both_hashes(
    place: Environment, wind: Path, tmp_path: Path
) -> None:
    wrong, right = "0" * 64, sha256(wind.read_bytes()).hexdigest()
    done = place.platform("install", "wind", "--catalog", catalog(tmp_path, wind, wrong), "--yes")
    refused(done, 5, wrong, right)
    assert there(place) == []
    wind.write_bytes(wind.read_bytes() + b"more")  # what it was is in the catalogue, and it has changed since
    done = place.platform("install", "wind", "--catalog", catalog(tmp_path, wind, right), "--yes")
    refused(done, 5, right)
    assert there(place) == []


def test_a_file_that_changes_between_the_question_and_the_answer_is_refused(
    place: Environment, wind: Path, tmp_path: Path
) -> None:
    """What is installed is what was shown."""
    program = tmp_path / "swap.py"
    program.write_text(
        "import sys\nfrom pathlib import Path\nfrom flowplat import plan\nfrom flowplat.cli import main\n"
        "whole = plan.plan\n"
        "def swapped(*arguments):\n"
        "    items = whole(*arguments)\n"
        "    Path(sys.argv[2]).write_bytes(Path(sys.argv[2]).read_bytes() + b'more')\n"
        "    return items\n"
        "plan.plan = swapped\nmain()\n"
    )
    done = place.run(place.python, program, "install", wind, "--yes")
    assert done.returncode == 5, done.stderr
    assert "is not the file it should be" in done.stderr
    assert there(place) == []


@pytest.mark.parametrize(
    ("requires", "told"), [("torch<2", "requires torch<2, and torch 2"), ("numpy<1", "requires numpy<1, and numpy ")]
)
def test_what_would_change_torch_or_numpy_is_refused(
    place: Environment, tmp_path: Path, requires: str, told: str
) -> None:
    wheel = wheels.wheel(tmp_path, "wind", PLUGIN, requires=["flowplat", requires])
    refused(place.platform("install", wheel, "--yes"), 3, "flowplat-wind 1.0", told)
    assert there(place) == []


def test_so_is_what_would_bring_along_something_that_does(place: Environment, tmp_path: Path) -> None:
    wheel = wheels.wheel(tmp_path, "wind", PLUGIN, requires=["flowplat", "gusts"])
    newer = ".".join([*version("numpy").split(".")[:2], "999"])  # all that flowplat requires would be content with it
    library(tmp_path, "gusts", "3.0", f"numpy>={newer}")
    library(tmp_path, "numpy", newer)
    bare = {"PIP_FIND_LINKS": str(tmp_path), "PIP_CONFIG_FILE": os.devnull}  # the machine's own constraints left out
    for what in (wheel, "flowplat-wind"):
        done = place.platform("install", what, "--yes", **bare)
        refused(done, 3, "gusts 3.0", f"requires numpy>={newer}, and numpy ")
    assert there(place) == []


def test_a_plugin_for_another_flowplat_is_refused(place: Environment, tmp_path: Path) -> None:
    wheel = wheels.wheel(tmp_path, "wind", PLUGIN, requires=["flowplat>=7,<8"])
    refused(place.platform("install", wheel, "--yes"), 3, "flowplat-wind 1.0 requires flowplat<8,>=7, and flowplat 0.")
    done = place.platform("install", "flowplat-wind", "--yes", PIP_FIND_LINKS=str(tmp_path))
    refused(done, 3, "flowplat-wind 1.0 requires flowplat<8,>=7, and flowplat 0.")


def test_from_an_index_the_newest_that_fits_comes_with_what_it_requires(place: Environment, tmp_path: Path) -> None:
    wheels.wheel(tmp_path, "wind", PLUGIN, version="1.0", requires=["flowplat", "gusts>=2"])
    wheels.wheel(tmp_path, "wind", PLUGIN, version="2.0", requires=["flowplat", "torch<2"])
    library(tmp_path, "gusts", "2.5")
    done = place.platform("install", "flowplat-wind", "--yes", PIP_FIND_LINKS=str(tmp_path))
    assert (done.returncode, done.stdout) == (0, "wind\n"), done.stderr
    assert "along with it: gusts 2.5" in done.stderr
    assert there(place) == ["flowplat-wind 1.0", "gusts 2.5"]


def test_what_would_break_another_plugin_is_refused(place: Environment, tmp_path: Path) -> None:
    rain = wheels.wheel(tmp_path, "rain", PLUGIN, requires=["flowplat", "gusts>=2"])
    wind = wheels.wheel(tmp_path, "wind", PLUGIN, requires=["flowplat", "gusts<2"])
    stale = wheels.wheel(tmp_path, "stale", PLUGIN, requires=["tqdm<4"])
    library(tmp_path, "tqdm", "3.0")
    for release in ("1.0", "2.0"):
        library(tmp_path, "gusts", release)
    index = {"PIP_FIND_LINKS": str(tmp_path)}
    assert place.platform("install", rain, "--yes", **index).returncode == 0
    done = place.platform("install", wind, "--yes", **index)
    refused(done, 3, "flowplat-wind 1.0 would put gusts 1.0 here", "flowplat-rain 1.0 requires gusts>=2")
    done = place.platform("install", stale, "--yes", **index)
    refused(done, 3, "flowplat-stale 1.0 would put tqdm 3.0 here", "requires tqdm>=")
    assert there(place) == ["flowplat-rain 1.0", "gusts 2.0"]


def test_what_is_no_plugin_is_refused(place: Environment, tmp_path: Path) -> None:
    refused(place.platform("install", library(tmp_path, "gusts", "1.0"), "--yes"), 3, "gusts 1.0 is no plugin")
    named = wheels.wheel(tmp_path, "Big Wind", PLUGIN, distribution="flowplat-big")
    refused(place.platform("install", named, "--yes"), 3, "'Big Wind', which none can be called")
    bad = tmp_path / "flowplat_bad-1.0-py3-none-any.whl"
    for content in (b"", b"no archive"):
        bad.write_bytes(content)
        refused(place.platform("install", bad, "--yes"), 5, "flowplat_bad-1.0", "fetch it again")
    evil = wheels.wheel(tmp_path, "evil", PLUGIN, requires=["flowplat", "x @ https://example.org/x.tar.gz"])
    refused(place.platform("install", evil, "--yes"), 3, "flowplat-evil 1.0 requires a file at https://example.org")
    assert there(place) == []


def test_one_plugin_comes_from_one_distribution(place: Environment, wind: Path, tmp_path: Path) -> None:
    other = wheels.wheel(tmp_path, "wind", PLUGIN, distribution="acme-wind")
    refused(place.platform("install", wind, other, "--yes"), 3, "acme-wind", "flowplat-wind")
    assert place.platform("install", wind, "--yes").returncode == 0
    refused(place.platform("install", other, "--yes"), 3, "acme-wind 1.0 brings a plugin 'wind'", "flowplat-wind")
    place.pip("install", "--no-deps", other)  # past us
    refused(place.platform("uninstall", "wind", "--yes"), 3, " or ")
    assert place.platform("uninstall", "acme-wind", "--yes").returncode == 0
    assert there(place) == ["flowplat-wind 1.0"]


def test_another_file_of_the_same_version_is_told_and_not_passed_over(
    place: Environment, wind: Path, tmp_path: Path
) -> None:
    assert place.platform("install", wind, "--yes").returncode == 0
    again = wheels.wheel(tmp_path / "again", "wind", {**PLUGIN, "more.py": ""})
    done = place.platform("install", again, "--yes")
    refused(done, 3, sha256(wind.read_bytes()).hexdigest(), sha256(again.read_bytes()).hexdigest(), "uninstall")
    newer = wheels.wheel(tmp_path, "wind", PLUGIN, version="1.1")
    done = place.platform("install", newer, "--yes")
    assert "flowplat-wind 1.1 in place of 1.0" in done.stderr
    assert there(place) == ["flowplat-wind 1.1"]


def test_a_frozen_list_makes_the_same_in_a_new_environment(
    place: Environment, wind: Path, tmp_path: Path, ours: dict[str, Path]
) -> None:
    rain = wheels.wheel(tmp_path, "rain", PLUGIN)
    index = {"PIP_FIND_LINKS": str(tmp_path)}
    assert place.platform("install", wind, "flowplat-rain==1.0", "--yes", **index).returncode == 0
    frozen = place.platform("freeze")
    digest = sha256(wind.read_bytes()).hexdigest()
    lines = [line for line in frozen.stdout.splitlines() if not line.startswith("#")]
    assert lines[1:] == ["flowplat-rain==1.0", f"flowplat-wind @ {wind.as_uri()}#sha256={digest}"]
    assert lines[0].startswith("flowplat==0.")
    list_ = tmp_path / "plugins.txt"
    list_.write_text(frozen.stdout)
    other = wheels.environment(tmp_path / "other", ours["flowplat"])
    done = other.platform("install", "-r", list_, "--yes", **index)
    assert (done.returncode, done.stdout) == (0, "rain\nwind\n"), done.stderr
    assert other.platform("freeze").stdout == frozen.stdout
    assert place.platform("install", "-r", list_, **index).returncode == 0  # all there: nothing to ask
    list_.write_text(frozen.stdout.replace(lines[0], "flowplat==0.0.7"))
    assert "was made with flowplat 0.0.7" in place.platform("install", "-r", list_, **index).stderr
    rain.unlink()
    wind.write_bytes(b"another file")
    assert other.platform("uninstall", "wind", "--yes").returncode == 0
    refused(other.platform("install", "-r", list_, "--yes", **index), 5, digest)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for 127.0.0.1, with its key in the same file."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl makes the certificate")
    pem = tmp_path_factory.mktemp("certificate") / "own.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1",
         "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", pem, "-out", pem.with_suffix(".crt")],
        check=True, capture_output=True,
    )  # fmt: skip
    pem.write_text(pem.read_text() + pem.with_suffix(".crt").read_text())
    return pem


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def web(tmp_path: Path, certificate: Path) -> Iterator[str]:
    """The https:// address at which the folder ``tmp_path / "web"`` is served."""
    (tmp_path / "web").mkdir()
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path / "web"))) as server:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True)
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"https://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_over_the_network(place: Environment, web: str, certificate: Path, tmp_path: Path) -> None:
    """A catalogue and its wheel at https://, a wheel by its address, and one of a page of links."""
    trusted = str(certificate.with_suffix(".crt"))
    trust = dict.fromkeys(("PIP_CERT", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE"), trusted)
    trust |= {"PIP_FIND_LINKS": "", "PIP_RETRIES": "0", "NO_PROXY": "127.0.0.1"}
    page = trust | {"PIP_FIND_LINKS": f"{web}/"}
    folder = tmp_path / "web"
    wind = wheels.wheel(folder, "wind", PLUGIN, requires=["flowplat", "gusts"])
    gusts = library(folder, "gusts", "1.0")
    digest, address = sha256(wind.read_bytes()).hexdigest(), f"{web}/{wind.name}"
    for told, code in (("0" * 64, 5), (digest, 0)):
        shelf = catalog(folder, wind, told)
        shelf.write_text(shelf.read_text().replace(wind.as_uri(), address))
        done = place.platform("install", "wind", "--catalog", f"{web}/catalog.toml", "--yes", **page)
        assert done.returncode == code, done.stderr
        assert digest in done.stderr
        assert there(place) == (["flowplat-wind 1.0", "gusts 1.0"] if code == 0 else [])
    assert f"along with it: gusts 1.0, licence MIT, from {web}/{gusts.name}" in done.stderr
    assert f"flowplat-wind @ {address}#sha256={digest}" in place.platform("freeze").stdout
    assert place.platform("uninstall", "wind", "--yes").returncode == 0
    refused(place.platform("install", f"{address}#sha256={'0' * 64}", "--yes", **trust), 5, digest)
    done = place.platform("install", "flowplat-wind", "--yes", **page)
    assert (done.returncode, done.stdout) == (0, "wind\n"), done.stderr
    assert "flowplat-wind==1.0" in place.platform("freeze").stdout
    refused(place.platform("install", address, **UNTRUSTED), 4, "certificate")
    refused(place.platform("install", f"{web}/flowplat_rain-1.0-py3-none-any.whl", **trust), 4, "404")
    refused(place.platform("search", "--catalog", f"{web}/none.toml", **trust), 4, "404")
    (folder / "big.toml").write_bytes(b"#" * 4_000_001)
    refused(place.platform("search", "--catalog", f"{web}/big.toml", **trust), 2, "more than 4 MB")


def project(
    folder: Path, points: str = '[project.entry-points."flowplat.plugins"]\nbreeze = "flowplat_breeze.plugin"'
) -> Path:
    """An author's folder, built by what is installed here."""
    (folder / "flowplat_breeze").mkdir(parents=True)
    (folder / "flowplat_breeze" / "__init__.py").write_text("")
    (folder / "flowplat_breeze" / "plugin.py").write_text(PLUGIN["plugin.py"])
    (folder / "pyproject.toml").write_text(
        '[build-system]\nrequires = ["setuptools"]\nbuild-backend = "setuptools.build_meta"\n'
        '[project]\nname = "flowplat-breeze"\nversion = "0.3"\nlicense = "MIT"\ndependencies = ["flowplat"]\n'
        f"{points}\n[tool.setuptools]\npackages = ['flowplat_breeze']\n"
    )
    return folder


UNTRUSTED = {"PIP_RETRIES": "0", "NO_PROXY": "127.0.0.1"}
HERE = {"PIP_NO_BUILD_ISOLATION": "0"}  # pip's own way to say: build with what is installed


def test_an_author_installs_a_folder(place: Environment, tmp_path: Path) -> None:
    folder = project(tmp_path / "breeze")
    done = place.platform("install", "breeze", "--yes", cwd=tmp_path, **HERE)
    assert (done.returncode, done.stdout) == (0, "breeze\n"), done.stderr
    assert "sha256    none" in done.stderr
    assert f"flowplat-breeze @ {folder.as_uri()}" in place.platform("freeze").stdout
    done = place.platform("install", "-e", folder, "--yes", **HERE)
    assert done.returncode == 0, done.stderr
    frozen = place.platform("freeze").stdout
    assert f"-e {folder}" in frozen.splitlines()
    (tmp_path / "list.txt").write_text(frozen)
    assert place.platform("uninstall", "breeze", "--yes").returncode == 0
    assert place.platform("install", "-r", tmp_path / "list.txt", "--yes", **HERE).returncode == 0
    assert place.platform("freeze").stdout == frozen


def test_a_folder_that_turns_out_to_be_no_plugin_is_removed_again(place: Environment, tmp_path: Path) -> None:
    folder = project(tmp_path / "breeze", 'dynamic = ["entry-points"]')
    done = place.platform("install", folder, "--yes", **HERE)
    assert done.returncode == 3
    assert "is no plugin of flowplat" in done.stderr
    assert "was removed again" in done.stderr
    assert there(place) == []
    (folder / "pyproject.toml").unlink()
    refused(place.platform("install", folder), 2, "has no pyproject.toml")


def test_ctrl_c_leaves_nothing_half_installed(place: Environment, tmp_path: Path) -> None:
    folder = project(tmp_path / "breeze")
    text = (folder / "pyproject.toml").read_text()
    text = text.replace('["setuptools"]', '["setuptools"]\nbackend-path = ["."]').replace(
        "setuptools.build_meta", "slow"
    )
    (folder / "pyproject.toml").write_text(text)
    (folder / "slow.py").write_text(
        "import pathlib, time\nfrom setuptools.build_meta import *\nfrom setuptools import build_meta as whole\n"
        "def build_wheel(*arguments, **keywords):\n"
        "    pathlib.Path(__file__).with_name('building').touch()\n    time.sleep(2)\n"
        "    return whole.build_wheel(*arguments, **keywords)\n"
    )
    variables = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "FLOWPLAT", "XDG_"))}
    variables |= {"HOME": str(place.home), "PIP_NO_INDEX": "1", **HERE}
    command = [place.folder / "bin" / "platform", "install", folder, "--yes"]
    for presses, wanted in ((1, ["flowplat-breeze 0.3"]), (2, [])):
        (folder / "building").unlink(missing_ok=True)
        with subprocess.Popen(command, env=variables, stderr=subprocess.PIPE, text=True) as process:
            while not (folder / "building").exists():
                assert process.poll() is None
                time.sleep(0.05)
            for _ in range(presses):
                process.send_signal(signal.SIGINT)
                time.sleep(0.5)
            assert process.stderr is not None
            said = process.stderr.read()
        assert process.returncode == 130, said
        assert "once more stops it" in said
        assert there(place) == wanted
        if wanted:
            place.platform("uninstall", "breeze", "--yes")


def test_without_pip(place: Environment, wind: Path) -> None:
    shared = place.folder.parent / "shared"
    (shared / "pip").rename(shared / "away")
    try:
        refused(place.platform("install", wind, "--yes"), 4, "has no pip", "ensurepip")
    finally:
        (shared / "away").rename(shared / "pip")


def test_a_network_that_is_not_there(place: Environment) -> None:
    away = {
        "PIP_NO_INDEX": "0",
        "PIP_INDEX_URL": "https://127.0.0.1:9/simple",
        "PIP_RETRIES": "1",
        "PIP_FIND_LINKS": "",
    }
    refused(place.platform("install", "flowplat-wind", **away), 4, "cannot be reached")
    wheel = "https://127.0.0.1:9/flowplat_wind-1.0-py3-none-any.whl"
    refused(place.platform("install", wheel, **away), 4, "127.0.0.1 cannot be reached")
    refused(place.platform("search", "--catalog", "https://127.0.0.1:9/catalog.toml"), 4, "cannot be fetched")


def test_disabled_plugins_stay_and_are_not_imported(place: Environment, tmp_path: Path) -> None:
    wheel = wheels.wheel(tmp_path, "wind", {"plugin.py": "raise SystemExit('imported')"})
    assert place.platform("install", wheel, "--yes").returncode == 0
    assert "imported" in place.platform("run", "wind").stderr
    assert place.platform("disable", "wind").returncode == 0
    assert json.loads(place.platform("list", "--json").stdout)[0]["state"] == "disabled"
    done = place.platform("run", "wind")
    refused(done, 3, "disabled", "platform enable wind")
    assert "imported" not in done.stderr
    assert "platform enable wind" in place.platform("install", wheel).stderr
    for word in ("enabled", "not disabled"):
        done = place.platform("enable", "wind")
        assert (done.returncode, done.stderr) == (0, f"wind is {word}\n")
    refused(place.platform("disable", "wnd"), 3, "did you mean 'wind'?")
    refused(place.platform("enable", "wnd"), 3, "did you mean 'wind'?")


@pytest.mark.parametrize("verb", ["search", "install", "uninstall", "freeze", "enable", "disable"])
def test_help_imports_nothing_heavy(verb: str, place: Environment) -> None:
    code = (
        "import sys\nfrom flowplat.cli import main\ntry:\n    main([sys.argv[1], '--help'])\n"
        "finally:\n    print(sorted({name.partition('.')[0] for name in sys.modules}), file=sys.stderr)\n"
    )
    done = place.run(place.python, "-c", code, verb)
    assert done.stdout.startswith(f"Usage: platform {verb}")
    loaded = set(done.stderr.translate(str.maketrans("", "", "[],'\n")).split())
    assert "click" in loaded
    assert not loaded & {"torch", "numpy", "pydantic", "yaml", "jinja2", "packaging"}


def test_the_catalogue_comes_with_the_wheel(ours: dict[str, Path]) -> None:
    with zipfile.ZipFile(ours["flowplat"]) as archive:
        names = [name for name in archive.namelist() if name.startswith("flowplat/catalog/")]
    assert len(names) == 8
    assert all(name.endswith(".toml") for name in names)
