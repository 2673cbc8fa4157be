"""Nothing goes to a network, and nothing but our own folders appears in HOME."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mpn.masks import save_labels
from tests.builders.learning_dirs import make_adaptable_engine_dir
from tests.runtime.media.clips import SCENE_HW, scene, scene_labels, write_video

SPY = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>

static void note(const char *what, const char *name) {
    FILE *file = fopen(getenv("SPY_LOG"), "a");
    if (file) { fprintf(file, "%s %s\n", what, name ? name : ""); fclose(file); }
}
static int is_network(const struct sockaddr *to) {
    return to && (to->sa_family == AF_INET || to->sa_family == AF_INET6);
}
int getaddrinfo(const char *node, const char *service, const struct addrinfo *hints,
                struct addrinfo **result) {
    note("lookup", node);
    return EAI_FAIL;
}
struct hostent *gethostbyname(const char *name) { note("lookup", name); return NULL; }
int connect(int fd, const struct sockaddr *to, socklen_t size) {
    if (is_network(to)) { note("connect", ""); errno = ENETUNREACH; return -1; }
    return ((int (*)(int, const struct sockaddr *, socklen_t))dlsym(RTLD_NEXT, "connect"))(
        fd, to, size);
}
ssize_t sendto(int fd, const void *data, size_t length, int flags, const struct sockaddr *to,
               socklen_t size) {
    if (is_network(to)) { note("sendto", ""); errno = ENETUNREACH; return -1; }
    return ((ssize_t (*)(int, const void *, size_t, int, const struct sockaddr *, socklen_t))dlsym(
        RTLD_NEXT, "sendto"))(fd, data, length, flags, to, size);
}
"""
"""A library for LD_PRELOAD that notes and refuses what leaves the machine."""

FINETUNED_RUN = """
import mpn, sys
from mpn.cli.main import main_run
sys.argv = ["mpn-run", "clip.mp4", "--mask", "first.png", "--engine-dir", "engines", "-o", "out",
            "--finetune-steps", "1", "--quiet"]
main_run()
"""
INSPECT = """
import sys
from mpn.cli.main import main
sys.argv = ["mpn", "inspect", "engines"]
main()
"""


@pytest.fixture(scope="module")
def spy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("gcc") or shutil.which("g++")
    if sys.platform != "linux" or compiler is None:
        if os.environ.get("MPN_REQUIRE_CUDA_TOOLS") == "1":
            pytest.fail("no C compiler for the library that notes network calls")
        pytest.skip("needs Linux and a C compiler")
    folder = tmp_path_factory.mktemp("spy")
    (folder / "spy.c").write_text(SPY)
    command = [compiler, "-xc", "-shared", "-fPIC", "-o", "spy.so", "spy.c", "-ldl"]
    subprocess.run(command, cwd=folder, check=True)
    return folder / "spy.so"


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """A folder with a clip, a mask, engines and an empty home."""
    (tmp_path / "home").mkdir()
    make_adaptable_engine_dir(tmp_path / "engines", frame_size_hw=SCENE_HW)
    write_video(tmp_path / "clip.mp4", scene(2))
    save_labels(tmp_path / "first.png", scene_labels(0))
    return tmp_path


def run_spied(work: Path, spy: Path, code: str) -> tuple[list[str], list[str]]:
    """Run code in a new process: the network calls, and the files in its home."""
    paths = os.pathsep.join(filter(None, sys.path))
    kept = {key: os.environ[key] for key in ("PATH", "LD_LIBRARY_PATH") if key in os.environ}
    log = work / "network.log"
    env = kept | {
        "HOME": str(work / "home"),
        "LD_PRELOAD": str(spy),
        "PYTHONPATH": paths,
        "SPY_LOG": str(log),
    }
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=work, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    calls = log.read_text().splitlines() if log.exists() else []
    home = work / "home"
    return calls, [str(p.relative_to(home)) for p in home.rglob("*") if not p.is_dir()]


def test_run_reaches_no_network_and_no_foreign_folder(work: Path, spy: Path) -> None:
    calls, files = run_spied(work, spy, FINETUNED_RUN)
    assert calls == []
    assert files  # control: the home is this one, the weights are cached in it
    assert all(file.startswith(".cache/mpn-runtime/") for file in files)


def test_inspect_reaches_no_network_and_leaves_nothing(work: Path, spy: Path) -> None:
    assert run_spied(work, spy, INSPECT) == ([], [])


CONTROL = """
import os, socket
try:
    socket.getaddrinfo("example.invalid", 80)
except OSError:
    pass
import onnxruntime
os._exit(0)  # its thread waits for the network at the end
"""


def test_spy_finds_lookups_and_telemetry_of_onnxruntime(work: Path, spy: Path) -> None:
    """Control: a lookup is noted, and onnxruntime alone leaves files."""
    calls, files = run_spied(work, spy, CONTROL)
    assert "lookup example.invalid" in calls
    if not files:
        pytest.skip("this onnxruntime has no telemetry")
    assert all("onnxruntime" in file for file in files)
