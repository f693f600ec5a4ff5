"""Texts as users have them, and one line for each thing that is wrong with a file."""

import bz2
import gzip
import io
import json
import lzma
import sys
from types import SimpleNamespace

import pytest

from flowcore.errors import InputError, MachineError
from flowplat_text.reading import found, texts


def test_plain_files_are_a_text_each_in_the_order_of_their_names(write, tmp_path) -> None:
    write("b.txt", "second\r\nline")
    write("a.md", "\ufefffirst")
    write("deep/c.txt.gz", gzip.compress(b"third", mtime=0))
    write("d.png", b"\x89PNG")
    write(".hidden/e.txt", "no")
    assert list(texts([str(tmp_path)])) == ["first", "second\nline", "third"]
    assert list(texts([str(tmp_path / "*.md"), str(tmp_path / "**" / "*.gz")])) == ["first", "third"]


@pytest.mark.parametrize(("ending", "packer"), [("gz", gzip), ("xz", lzma), ("bz2", bz2)])
def test_packed_files_are_unpacked(write, ending, packer) -> None:
    path = write(f"a.jsonl.{ending}", packer.compress(b'{"text": "one"}\n\n{"text": "two"}\n'))
    assert list(texts([path])) == ["one", "two"]


def test_zst_is_read_or_the_package_is_named(write) -> None:
    path = write("a.txt.zst", b"(\xb5/\xfd$\x02\x11\x00\x00hi\xd5\x8d\xa6\x0e")
    try:
        import zstandard  # noqa: F401
    except ImportError:
        with pytest.raises(MachineError, match=r"needs the package zstandard; pip install 'flowplat-text\[zst\]'"):
            list(texts([path]))


def test_tables_have_a_text_in_a_column(write) -> None:
    csv = write("a.csv", 'name,body\none,"a text\nof two lines"\ntwo,another\n')
    tsv = write("a.tsv", "body\tname\nthird\tx\n")
    assert list(texts([csv, tsv], "body")) == ["a text\nof two lines", "another", "third"]


def test_parquet(write, tmp_path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pyarrow.table({"text": ["one", " ", "two"], "n": [1, 2, 3]}), tmp_path / "a.parquet")
    path = str(tmp_path / "a.parquet")
    assert list(texts([path])) == ["one", "two"]
    with pytest.raises(InputError, match=r"a.parquet has no 'body'; it has text, n: name the column"):
        list(texts([path], "body"))
    with pytest.raises(InputError, match="cannot be read as parquet"):
        list(texts([write("b.parquet", "no")]))


def test_the_standard_input_is_a_text(monkeypatch) -> None:
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO("grüße".encode())))
    assert list(texts(["-"])) == ["grüße"]


@pytest.mark.parametrize(
    ("name", "content", "line"),
    [
        ("empty.txt", b"", "empty.txt is empty"),
        ("blank.txt", b" \n\n", "blank.txt is empty"),
        ("none.jsonl", b"\n", "none.jsonl is empty"),
        ("binary.txt", b"abc\0def", "binary.txt is binary, byte 3 is 0; only text is read"),
        ("latin.txt", "schön".encode("latin-1"), "latin.txt is not UTF-8: byte 3 is 0xf6; only text is read"),
        ("cut.gz", gzip.compress(b"a long text" * 50, mtime=0)[:30], "cut.gz cannot be read: "),
        ("no.gz", b"plain", "no.gz cannot be read: Not a gzipped file"),
        ("no.xz", b"plain", "no.xz cannot be read: "),
        ("a.jsonl", b'{"text": "x"}\n{"text": 3}\n', "a.jsonl, line 2: 'text' is int, not text"),
        ("a.jsonl", b'{"txt": "x"}\n', "a.jsonl, line 1 has no 'text'; it has txt: name the column or key"),
        ("a.jsonl", b"[1]\n", "a.jsonl, line 1 has no 'text': name"),
        ("a.jsonl", b'{"text": "x"\n', "a.jsonl, line 1 is no JSON"),
        ("a.csv", b"body\nx\n", "a.csv, line 2 has no 'text'; it has body"),
        ("a.csv", b"b,text\nx,y\nz\n", "a.csv, line 3: 'text' is NoneType, not text"),
    ],
)  # fmt: skip
def test_each_fault_of_a_file_is_one_line_that_names_it(write, name, content, line) -> None:
    path = write(name, content)
    with pytest.raises(InputError) as told:
        list(texts([path]))
    assert line in str(told.value)
    assert "\n" not in str(told.value)


def test_what_names_no_file_is_told(tmp_path) -> None:
    for path, line in ((tmp_path, "holds no file of text"), (tmp_path / "x.txt", "does not exist"),
                       (tmp_path / "*.txt", "names no file")):  # fmt: skip
        with pytest.raises(InputError, match=line):
            found([str(path)])


def test_rows_keep_their_other_columns(write) -> None:
    from flowplat_text.reading import rows

    path = write("a.jsonl", json.dumps({"text": "b", "before": "a"}))
    assert list(rows(path, "text")) == [{"text": "b", "before": "a"}]
