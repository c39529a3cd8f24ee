"""Compiling: no compiler, broken ones, nowhere to write, many processes at once."""

import os
import pathlib
import stat
import subprocess
import sys

import pytest

from custom_ops import build

RUN = """
import warnings; warnings.simplefilter("always")
import numpy as np, custom_ops
x, f = np.ones([1, 3, 3, 2], np.float32), np.ones([3, 3, 2, 1], np.float32)
for _ in range(2):
    y = custom_ops.perforated_conv2d(x, f, np.eye(3) > 0)
print(float(y[0, 1, 1, 0]), custom_ops.load() is not None)
"""


@pytest.fixture(autouse=True)
def no_cuda(monkeypatch):
    """Most tests are about the part for CPUs."""
    monkeypatch.setenv("NVCC", "")
    monkeypatch.delenv("SACT_CUDA_ARCHITECTURES", raising=False)


def run(**environment):
    """Runs a perforated convolution in a new process; returns its output and errors."""
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", **environment}
    done = subprocess.run(
        [sys.executable, "-c", RUN], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


def broken_compiler(directory):
    path = directory / "broken"
    path.write_text(
        "#!/bin/sh\n[ $1 = --version ] && exit\necho error: out of order >&2\nexit 1\n"
    )
    path.chmod(path.stat().st_mode | stat.S_IEXEC)
    return path


def test_falls_back_with_one_warning(tmp_path):
    compiler = broken_compiler(tmp_path)
    out, err = run(CXX=str(compiler), SACT_CACHE_DIR=str(tmp_path / "cache"))
    assert out.split() == ["18.0", "False"]
    assert err.count("RuntimeWarning") == 1
    assert "error: out of order" in err


def test_no_compiler(monkeypatch):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(build.BuildError, match="no C\\+\\+ compiler"):
        build.build()


def test_a_compiler_that_is_not_there(monkeypatch):
    monkeypatch.setenv("CXX", "/nowhere/c++")
    with pytest.raises(build.BuildError, match="/nowhere/c\\+\\+ can not be run"):
        build.build()


def test_nowhere_to_write(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SACT_CACHE_DIR", str(tmp_path / "file" / "cache"))
    monkeypatch.setattr(build, "_key", lambda cuda: "key")
    with pytest.raises(build.BuildError, match="set SACT_CACHE_DIR"):
        build.build()


def test_another_place_where_the_first_can_not_be_written(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.delenv("SACT_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr(build.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(build, "_key", lambda cuda: "key")
    monkeypatch.setattr(
        build, "_compile", lambda output, cuda: print("library", file=output.open("w"))
    )
    path = build.build()
    assert path.parent.parent == tmp_path and path.read_text() == "library\n"


def test_another_tensorflow_is_another_library(monkeypatch):
    key = build._key()
    assert key == build._key()
    monkeypatch.setattr(build.tf, "__version__", "2.99.0")
    assert key != build._key()


@pytest.mark.long
def test_processes_that_start_at_once_compile_once(tmp_path):
    """A compiler that writes down when it links, and takes its time."""
    compiler = tmp_path / "slow"
    compiler.write_text(
        "#!/bin/sh\n"
        "[ $1 = --version ] && exit\n"
        f'case "$*" in *-shared*) echo run >> {tmp_path}/runs; sleep 1;; esac\n'
        'while [ "$1" != -o ]; do shift; done\n'
        'echo library > "$2"\n'
    )
    compiler.chmod(0o755)
    code = "from custom_ops import build; print(open(build.build()).read())"
    environment = {
        **os.environ,
        "CXX": str(compiler),
        "SACT_CACHE_DIR": str(tmp_path / "cache"),
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE
        )
        for _ in range(3)
    ]
    assert [p.communicate()[0].split() for p in processes] == [[b"library"]] * 3
    assert (tmp_path / "runs").read_text() == "run\n"


WRITES_OUTPUT = """\
while [ "$1" != -o ]; do shift; done
echo "$0" >> "$2"
"""


def fake_program(path, body):
    path.write_text(f"#!/bin/sh\n{body}")
    path.chmod(0o755)
    return str(path)


@pytest.fixture
def compilers(monkeypatch, tmp_path):
    """A C++ and a CUDA compiler that write their names; returns how to change nvcc."""
    fake_cxx = fake_program(
        tmp_path / "fake-c++", f"[ $1 = --version ] && exit\n{WRITES_OUTPUT}"
    )
    monkeypatch.setenv("CXX", fake_cxx)
    monkeypatch.setenv("NVCC", str(tmp_path / "fake-nvcc"))
    monkeypatch.setenv("SACT_CACHE_DIR", str(tmp_path / "cache"))

    def set_nvcc(body, version="release 1"):
        fake_program(
            tmp_path / "fake-nvcc",
            f"[ $1 = --version ] && echo {version} && exit\n"
            "[ $1 = --list-gpu-arch ] && echo compute_80 && echo compute_90 && exit\n"
            f'echo "$@" >> {tmp_path}/runs\n{body}',
        )

    set_nvcc(WRITES_OUTPUT)
    return set_nvcc


@pytest.mark.filterwarnings("error")
def test_nvcc_compiles_and_links(compilers, tmp_path, capsys):
    path = build.build(verbose=True)
    assert path.read_text() == f"{tmp_path}/fake-nvcc\n"
    runs = (tmp_path / "runs").read_text().splitlines()
    *compiled, linked = runs
    sources = {pathlib.Path(run.split(" -c ")[1].split()[0]).name for run in compiled}
    assert sources == set(build._CUDA_SOURCES)
    assert len(compiled) == len(sources) and "-shared" in linked
    for run in compiled:
        assert "arch=compute_80,code=sm_80" in run
        assert "arch=compute_90,code=sm_90 " in run
        assert "arch=compute_90,code=compute_90" in run
    assert "CUDA: for compute capability 8.0, 9.0" in capsys.readouterr().out


@pytest.mark.parametrize(
    "release, name", [("11.8", "90"), ("12.0", "90a"), ("13.0", "90a")]
)
def test_code_for_90_alone(release, name):
    """Where the compiler knows it, beside PTX that newer GPUs can use."""
    version = f"Cuda compilation tools, release {release}, V{release}.1"
    flags = build._Cuda((), version, (80, 90)).flags()
    codes = [flag.removeprefix("-gencode=") for flag in flags if "gencode" in flag]
    assert codes == [
        "arch=compute_80,code=sm_80",
        f"arch=compute_{name},code=sm_{name}",
        "arch=compute_90,code=compute_90",
    ]


def test_an_nvcc_that_fails_costs_the_cuda_part_alone(compilers, tmp_path, capsys):
    compilers("echo error: out of order >&2; exit 1\n")
    for _ in range(2):
        with pytest.warns(RuntimeWarning, match="(?s)CUDA.*nvcc.*out of order") as all:
            path = build.build(verbose=True)
        assert len(all) == 1
        assert path.read_text() == f"{tmp_path}/fake-c++\n"
    assert "CUDA: no" in capsys.readouterr().out
    # The second time it was known, and not tried: every source once.
    runs = (tmp_path / "runs").read_text().splitlines()
    assert len(runs) == len(build._CUDA_SOURCES)
    compilers(WRITES_OUTPUT)
    assert build.build(retry=True).read_text() == f"{tmp_path}/fake-nvcc\n"
    assert build.build().read_text() == f"{tmp_path}/fake-nvcc\n"


def test_another_nvcc_is_tried(compilers, tmp_path):
    compilers("exit 1\n")
    with pytest.warns(RuntimeWarning, match="nvcc"):
        build.build()
    compilers(WRITES_OUTPUT, version="release 2")
    assert build.build().read_text() == f"{tmp_path}/fake-nvcc\n"


def test_an_nvcc_that_is_not_there(compilers, monkeypatch, tmp_path):
    monkeypatch.setenv("NVCC", "/nowhere/nvcc")
    with pytest.warns(RuntimeWarning, match="/nowhere/nvcc can not be run") as all:
        path = build.build()
    assert len(all) == 1
    assert path.read_text() == f"{tmp_path}/fake-c++\n"


def test_an_nvcc_that_is_too_old(compilers, tmp_path):
    program = tmp_path / "fake-nvcc"
    old = program.read_text().replace(
        "echo compute_80 && echo compute_90", "echo compute_70"
    )
    program.write_text(old)
    with pytest.warns(
        RuntimeWarning, match="from 75 on; install a newer CUDA compiler"
    ):
        path = build.build()
    assert path.read_text() == f"{tmp_path}/fake-c++\n"


@pytest.mark.filterwarnings("error")
def test_no_cuda_part_where_nvcc_is_empty(compilers, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("NVCC", "")
    path = build.build(verbose=True)
    assert path.read_text() == f"{tmp_path}/fake-c++\n"
    assert not (tmp_path / "runs").exists()
    assert "CUDA: no" in capsys.readouterr().out


@pytest.mark.parametrize("value", ["abc", "8.0", "80,90", "80;", "-1"])
def test_bad_architectures(compilers, monkeypatch, tmp_path, value):
    monkeypatch.setenv("SACT_CUDA_ARCHITECTURES", value)
    with pytest.warns(RuntimeWarning) as all:
        path = build.build()
    message = str(all[0].message)
    assert len(all) == 1
    assert "SACT_CUDA_ARCHITECTURES must be" in message
    assert "like 75;80;90" in message and repr(value) in message
    assert path.read_text() == f"{tmp_path}/fake-c++\n"


@pytest.mark.parametrize(
    "value, expected",
    [
        (None, (75, 80, 90)),
        ("80", (80,)),
        ("90; 80", (80, 90)),
        ("60;61", (75,)),
        ("80;999", (80,)),
        ("999", (75,)),
        ("all", (75, 80, 86, 90)),
    ],
)
def test_architectures(monkeypatch, value, expected):
    """Old ones become the oldest that the compiler knows, unknown new ones go."""
    if value is not None:
        monkeypatch.setenv("SACT_CUDA_ARCHITECTURES", value)
    assert build._architectures({75, 80, 86, 90}) == expected


@pytest.fixture
def library(compilers, monkeypatch, tmp_path):
    """A library that was built before; how to build anew, and its warnings."""
    monkeypatch.setenv("NVCC", "")
    path = build.build()
    assert path.read_text() == f"{tmp_path}/fake-c++\n"
    return path


@pytest.mark.filterwarnings("error")
def test_a_library_of_ours_is_taken(library):
    library.write_text("kept")
    build._digest_file(library).write_text(build._digest(library))
    assert build.build() == library and library.read_text() == "kept"
    assert stat.S_IMODE(library.stat().st_mode) == 0o700
    assert stat.S_IMODE(library.parent.stat().st_mode) == 0o700


@pytest.mark.parametrize("mask", [0o000, 0o002, 0o077])
@pytest.mark.filterwarnings("error")
def test_any_mask_of_new_files(compilers, monkeypatch, mask):
    monkeypatch.setenv("NVCC", "")
    before = os.umask(mask)
    try:
        assert build.build() == build.build()
    finally:
        os.umask(before)


def link(path):
    other = path.with_name("elsewhere")
    path.rename(other)
    path.symlink_to(other)


@pytest.mark.parametrize(
    "spoil, message",
    [
        (link, "is a link"),
        (lambda path: path.chmod(0o720), r"can be written by other users .mode 720"),
        (lambda path: path.chmod(0o702), r"can be written by other users .mode 702"),
        (lambda path: path.write_text("cut"), "is damaged"),
        (lambda path: build._digest_file(path).unlink(), "is without its digest"),
        (lambda path: build._digest_file(path).chmod(0o666), "by other users"),
        (lambda path: link(build._digest_file(path)), "is a link"),
    ],
)
def test_a_library_that_is_not_ours_or_not_whole_is_built_anew(
    library, tmp_path, spoil, message
):
    spoil(library)
    with pytest.warns(RuntimeWarning, match=f"{message}.*compiled anew") as all:
        assert build.build() == library
    assert len(all) == 1 and not library.is_symlink()
    assert library.read_text() == f"{tmp_path}/fake-c++\n"
    assert build.build() == library


@pytest.mark.parametrize(
    "spoil, message",
    [
        (link, "cache is a link"),
        (
            lambda path: path.chmod(0o777),
            "cache can be written by other users .mode 777",
        ),
        (
            lambda path: path.chmod(0o770),
            "cache can be written by other users .mode 770",
        ),
    ],
)
def test_a_directory_that_is_not_ours(library, monkeypatch, tmp_path, spoil, message):
    spoil(library.parent)
    with pytest.raises(build.BuildError, match=message):
        build.build()
    # Where it is the usual place, the next one is taken.
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("SACT_CACHE_DIR")
    monkeypatch.setattr(build.tempfile, "gettempdir", lambda: str(tmp_path / "tmp"))
    (tmp_path / "cache").rename(tmp_path / "sact_tf")
    message = message.replace("cache", "sact_tf", 1)
    with pytest.warns(RuntimeWarning, match=f"because .*{message}") as all:
        path = build.build()
    assert len(all) == 1 and path.parent.parent == tmp_path / "tmp"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
@pytest.mark.parametrize("what", ["file", "directory", "home"])
def test_files_of_another_user(library, monkeypatch, tmp_path, what):
    if what == "file":
        os.chown(library, 1000, 1000)
        with pytest.warns(RuntimeWarning, match="belongs to user 1000; .* anew"):
            assert build.build() == library
        assert library.stat().st_uid == 0
        return
    home = tmp_path / "home"
    (home / ".cache").mkdir(parents=True)
    place = home / ".cache" / "sact_tf"
    if what == "directory":
        library.parent.rename(place)
        os.chown(place, 1000, 1000)
        message = "sact_tf belongs to user 1000"
    else:
        os.chown(home / ".cache", 1000, 1000)
        message = "would lie in .*cache, which is of user 1000"
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("SACT_CACHE_DIR")
    monkeypatch.setattr(build.tempfile, "gettempdir", lambda: str(tmp_path / "tmp"))
    with pytest.warns(RuntimeWarning, match=message) as all:
        path = build.build()
    assert len(all) == 1 and path.parent.parent == tmp_path / "tmp"
    assert place.exists() == (what == "directory")


def test_another_users_library_does_not_run(library, monkeypatch):
    """As the check is by the process's own user, without root too."""
    uid = os.geteuid()
    monkeypatch.setattr(build.os, "geteuid", lambda: uid + 1)
    with pytest.raises(build.BuildError, match=f"cache belongs to user {uid}"):
        build.build()


def test_neither_home_nor_user(compilers, monkeypatch, tmp_path):
    def no_home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setenv("NVCC", "")
    monkeypatch.delenv("SACT_CACHE_DIR")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(build.pathlib.Path, "home", no_home)
    monkeypatch.setattr(build.tempfile, "gettempdir", lambda: str(tmp_path / "tmp"))
    assert build.build().parent == tmp_path / "tmp" / f"sact_tf-{os.geteuid()}"

    def no_place():
        raise FileNotFoundError("No usable temporary directory")

    monkeypatch.setattr(build.tempfile, "gettempdir", no_place)
    with pytest.raises(build.BuildError, match="neither a home nor a temporary dir"):
        build.build()


def test_a_tilde_in_the_cache_directory(compilers, monkeypatch, tmp_path):
    monkeypatch.setenv("NVCC", "")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SACT_CACHE_DIR", "~/mine")
    assert build.build().parent == tmp_path / "mine"
    monkeypatch.setenv("SACT_CACHE_DIR", "~no_such_user_here/mine")
    with pytest.raises(
        build.BuildError, match="SACT_CACHE_DIR=~no_such_user_here/mine"
    ):
        build.build()


def test_no_file_locks(compilers, monkeypatch):
    monkeypatch.setattr(build, "fcntl", None)
    with pytest.raises(build.BuildError, match="need a system with file locks"):
        build.build()


def test_locks_that_fail(compilers, monkeypatch):
    def fail(*arguments):
        raise OSError(37, "No locks available")

    monkeypatch.setenv("NVCC", "")
    monkeypatch.setattr(build.fcntl, "flock", fail)
    with pytest.raises(build.BuildError, match="cannot be kept: .*No locks available"):
        build.build()
