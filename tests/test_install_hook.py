"""The installation of the hook; what it does then is tested with `post_import_hook`."""

import site
import sysconfig
import tomllib
from pathlib import Path

import pytest
from locations import PROJECT
from stand_ins import PACKAGE, TIMM, make_venv, python, write

from densenet_backbones import install_hook
from densenet_backbones.install_hook import MARK, MODULE, Hook, main

NAMES = [f"{MODULE}.py", "densenet_backbones_hook.pth"]
REGISTERED = "import timm; assert timm.create_model('ours') == 'ours'"
NO_HOOK = "import sys; assert '_TimmFinder' not in str([type(f) for f in sys.meta_path])"


def tree(folder: Path) -> dict[str, bytes | None]:
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }


@pytest.fixture
def folder(tmp_path) -> Path:
    """A directory with the hook and a neighbour."""
    folder = write(tmp_path / "site", {"neighbour.py": "x = 1\n", "neighbour.pth": "# nothing\n"})
    Hook(folder).install()
    return folder


# -- the two files ---------------------------------------------------------------------------------


def test_installing_twice_writes_once(folder):
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert set(NAMES) <= {path.name for path in folder.iterdir()}
    assert Hook(folder).install() == []
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_removal_leaves_the_folder_as_before(folder):
    assert list((folder / "__pycache__").glob(f"{MODULE}.*.pyc"))
    assert sorted(path.name for path in Hook(folder).remove()) == NAMES
    assert tree(folder) == {"neighbour.py": b"x = 1\n", "neighbour.pth": b"# nothing\n"}
    assert Hook(folder).remove() == []


def test_removal_leaves_what_others_compiled(folder):
    write(folder, {"__pycache__/neighbour.cpython-311.pyc": ""})
    Hook(folder).remove()
    assert (folder / "__pycache__" / "neighbour.cpython-311.pyc").exists()


@pytest.mark.parametrize("name", NAMES)
def test_files_of_others_are_left_alone(tmp_path, name, capsys):
    write(tmp_path, {name: "# mine\n"})
    for flags in ([], ["--remove"]):
        with pytest.raises(SystemExit, match="2"):
            main(["--target", str(tmp_path), *flags])
        sentence = f"{tmp_path / name} was not written by this command; move it away, then"
        assert sentence in capsys.readouterr().err
    assert tree(tmp_path) == {name: b"# mine\n"}


def test_a_file_edited_beyond_its_first_line_is_still_ours(folder):
    (folder / NAMES[0]).write_text(f"{MARK}raise SystemExit\n")
    assert Hook(folder).state() == "installed, of another version"
    assert [path.name for path in Hook(folder).install()] == [NAMES[0]]
    assert Hook(folder).state() == "installed"


def test_half_a_hook_is_completed_or_removed(folder):
    for name in NAMES:
        (folder / name).unlink()
        assert Hook(folder).state() == "incomplete"
        assert [path.name for path in Hook(folder).install()] == [name]
    (folder / NAMES[0]).unlink()
    assert [path.name for path in Hook(folder).remove()] == NAMES[1:]
    assert Hook(folder).state() == "not installed"


def test_a_write_that_fails_leaves_nothing(tmp_path, monkeypatch, capsys):
    def refuse(self, target):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(SystemExit, match="2"):
        main(["--target", str(tmp_path)])
    assert f"{tmp_path / NAMES[0]} cannot be changed (Permission denied); use --user" in (
        capsys.readouterr().err
    )
    assert tree(tmp_path) == {}


def test_files_can_be_read_by_whom_others_can(folder):
    for name in NAMES:
        assert (folder / name).stat().st_mode == (folder / "neighbour.py").stat().st_mode


# -- the command -----------------------------------------------------------------------------------


def test_a_round_of_commands(tmp_path, capsys):
    target = ["--target", str(tmp_path)]
    said = []
    for flags, status in (
        (["--status"], 1),
        ([], 0),
        ([], 0),
        (["--status"], 0),
        (["--remove"], 0),
        (["--remove"], 0),
    ):
        assert main([*target, *flags]) == status
        said.append([line for line in capsys.readouterr().out.splitlines() if "note" not in line])
    module, pth = (tmp_path / name for name in NAMES)
    assert said == [
        [f"not installed in {tmp_path}"],
        [f"wrote {module}", f"wrote {pth}"],
        [f"already installed in {tmp_path}"],
        [f"installed in {tmp_path}"],
        [f"removed {pth}", f"removed {module}"],
        [f"not installed in {tmp_path}"],
    ]


def test_a_target_that_python_does_not_read_is_noted(tmp_path, capsys, monkeypatch):
    main(["--target", str(tmp_path)])
    assert "does not read .pth files in" in capsys.readouterr().out
    monkeypatch.setattr(site, "getsitepackages", lambda: [str(tmp_path)])
    main(["--target", str(tmp_path)])
    assert "note" not in capsys.readouterr().out


def test_removal_says_where_else_it_is_installed(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(install_hook, "site_folders", lambda: [folder])
    main(["--remove", "--target", str(tmp_path)])
    assert f"but in {folder}: add --target {folder}" in capsys.readouterr().out
    assert Hook(folder).state() == "installed"


def test_status_looks_everywhere(folder, capsys, monkeypatch):
    monkeypatch.setattr(install_hook, "site_folders", lambda: [folder.parent, folder])
    monkeypatch.setenv(install_hook.SWITCH, "0")
    assert main(["--status"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"installed in {folder}",
        "switched off here by DENSENET_BACKBONES_HOOK=0",
    ]
    Hook(folder).remove()
    assert main(["--status"]) == 1


def test_user_site(tmp_path, capsys, monkeypatch):
    user = tmp_path / "lib" / "site-packages"
    monkeypatch.setattr(site, "getusersitepackages", lambda: str(user))
    monkeypatch.setattr(site, "ENABLE_USER_SITE", False)
    with pytest.raises(SystemExit, match="2"):
        main(["--user"])
    assert "does not read its user site directory" in capsys.readouterr().err
    assert not user.exists()
    monkeypatch.setattr(site, "ENABLE_USER_SITE", True)
    assert main(["--user"]) == 0
    assert sorted(path.name for path in user.iterdir() if path.is_file()) == NAMES
    assert "note" not in capsys.readouterr().out
    assert main(["--user", "--remove"]) == 0
    assert tree(user) == {}


def test_a_target_must_exist(tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["--target", str(tmp_path / "nowhere")])
    assert "--target must be an existing directory, got" in capsys.readouterr().err


def test_the_default_is_the_interpreters_own_directory():
    assert install_hook.default_folder() == Path(sysconfig.get_path("purelib"))
    assert install_hook.default_folder().resolve() in install_hook.site_folders()


def test_nothing_is_installed_by_default():
    folders = ("densenet_backbones", "heads", "configs", "tools", "tests", ".ci")
    assert [path for name in folders for path in (PROJECT / name).rglob("*.pth")] == []
    setup = tomllib.loads((PROJECT / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert ".pth" not in str(setup)


# -- at the true start of Python -------------------------------------------------------------------


def test_install_use_and_remove_in_a_virtual_environment(tmp_path):
    commands = {
        f"densenet_backbones/{name}": (PROJECT / "densenet_backbones" / name).read_text()
        for name in ("install_hook.py", "post_import_hook.py")
    }
    interpreter, folder = make_venv(tmp_path, {**TIMM, **PACKAGE, **commands})
    command = ("-m", "densenet_backbones.install_hook")
    modules = "import sys; print(*sorted(sys.modules))"
    bare = python(interpreter, "-c", modules).stdout.split()
    before = set(tree(folder))
    assert "Unknown model" in python(interpreter, "-c", REGISTERED).stderr

    done = python(interpreter, *command)
    assert done.stdout == f"wrote {folder / NAMES[0]}\nwrote {folder / NAMES[1]}\n", done.stderr
    for options in ((), ("-I",), ("-E", "-s"), ("-P",), ("-W", "error")):
        done = python(interpreter, *options, "-c", REGISTERED)
        assert (done.returncode, done.stderr) == (0, ""), options
    off = python(interpreter, "-c", REGISTERED, DENSENET_BACKBONES_HOOK="0")
    assert "Unknown model" in off.stderr
    unread = python(interpreter, "-S", "-c", NO_HOOK)
    assert (unread.returncode, unread.stderr) == (0, "")
    # A start of Python imports the hook's module and nothing else.
    hooked = python(interpreter, "-c", modules).stdout.split()
    assert set(hooked) - set(bare) == {MODULE}
    assert "AssertionError" in python(interpreter, "-c", NO_HOOK).stderr

    assert "installed in" in python(interpreter, *command, "--status").stdout
    assert python(interpreter, *command, "--remove").returncode == 0
    left = {name for name in tree(folder) if "__pycache__" not in name}
    assert left == {name for name in before if "__pycache__" not in name}
    assert not [name for name in tree(folder) if MODULE in name]
    assert python(interpreter, *command, "--status").returncode == 1
    assert "Unknown model" in python(interpreter, "-c", REGISTERED).stderr
