"""What a command has printed, read back: the cells of its pipe tables, its words however its lines are broken."""


def cells(line: str) -> list[str]:
    """Those of a line of a pipe table."""
    return [cell.strip() for cell in line.strip("|").split("|")]


def tables(out: str) -> list[list[list[str]]]:
    """The cells of each pipe table, the line below the header left out."""
    found: list[list[list[str]]] = [[]]
    for line in out.splitlines():
        if line.startswith("|"):
            found[-1].append(cells(line))
        elif found[-1]:
            found.append([])
    return [[table[0], *table[2:]] for table in found if table]


def words(out: str) -> str:
    """All of it on one line."""
    return " ".join(out.split())
