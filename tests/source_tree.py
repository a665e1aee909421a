"""What the sources of detr/ import, read from their text: nothing is run."""

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def sources() -> dict[str, str]:
    """Path relative to detr/ -> text."""
    package = ROOT / "detr"
    return {str(path.relative_to(package)): path.read_text() for path in sorted(package.rglob("*.py"))}


def imports(source: str, package: str = "detr") -> set[str]:
    """Dotted names of all that `source` imports, wherever it stands: `from a.b import c` gives "a.b.c".

    `package` is the one that the file lies in, for relative imports.
    """
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            if node.level:
                parents = package.split(".")
                module = ".".join([*parents[: len(parents) - node.level + 1], *filter(None, [module])])
            names.update(f"{module}.{alias.name}" for alias in node.names)
    return names


def package_of(path: str) -> str:
    """ "modeling/matcher.py" -> "detr.modeling" """
    return ".".join(["detr", *Path(path).parts[:-1]])


def within(name: str, module: str) -> bool:
    """True for `module` itself and all below it."""
    return name == module or name.startswith(module + ".")
