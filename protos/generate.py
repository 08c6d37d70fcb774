"""Generate the typed stubs in generated/ from protos/, or check that they are up to date.

Usage: python protos/generate.py [--check]

Two passes of protoc: messages for every file, then gRPC stubs for `*_service.proto` only. The proto path equals
the import path, so nothing is rewritten.
"""

import argparse
import filecmp
import shutil
import sys
import tempfile
from importlib.resources import files
from pathlib import Path

from grpc_tools import protoc

PROTOS = Path(__file__).resolve().parent
GENERATED = PROTOS.parent / "generated"


def run_protoc(protos: list[str], *outputs: str) -> None:
    """Run protoc over `protos`; exits with its status when it fails."""
    include = str(files("grpc_tools") / "_proto")
    scripts = Path(sys.executable).parent
    plugins = [f"--plugin={name}={scripts / name}" for name in ("protoc-gen-mypy", "protoc-gen-mypy_grpc")]
    status = protoc.main(["protoc", f"-I{PROTOS}", f"-I{include}", *plugins, *outputs, *protos])
    if status:
        sys.exit(status)


def generate(target: Path) -> None:
    """Write all stubs below `target`, with `py.typed` in each member of the namespace."""
    every = sorted(str(path.relative_to(PROTOS)) for path in PROTOS.rglob("*.proto"))
    services = [name for name in every if name.endswith("_service.proto")]
    run_protoc(every, f"--python_out={target}", f"--mypy_out=quiet:{target}")
    run_protoc(services, f"--grpc_python_out={target}", f"--mypy_grpc_out=quiet,only_async:{target}")
    for member in (target / "inferplane").iterdir():
        (member / "py.typed").touch()


def tree(root: Path) -> set[Path]:
    """The generated files below `root`, as relative paths."""
    return {p.relative_to(root) for p in root.rglob("*") if p.is_file() and "__pycache__" not in p.parts}


def main() -> int:
    """Generate, or with --check compare a fresh generation with what is committed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="fail if generated/ differs from protos/")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        fresh = Path(scratch)
        generate(fresh)
        if not arguments.check:
            shutil.rmtree(GENERATED, ignore_errors=True)
            shutil.copytree(fresh, GENERATED)
            return 0
        names = tree(fresh) | tree(GENERATED)
        stale = [
            str(name)
            for name in sorted(names)
            if not (GENERATED / name).is_file()
            or not (fresh / name).is_file()
            or not filecmp.cmp(fresh / name, GENERATED / name, shallow=False)
        ]
    if stale:
        sys.stderr.write("generated/ is stale; run `make generate`:\n  " + "\n  ".join(stale) + "\n")
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
