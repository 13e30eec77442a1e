from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.runtime.atomic_files import read_json_lines, sha256_of, swapped_in, write_json_lines


def write_both(folder: Path, file: Path, text: str) -> None:
    with swapped_in(folder, file) as (new_folder, new_file):
        new_folder.mkdir()
        (new_folder / "inside").write_text(text)
        new_file.write_text(text)


def test_outputs_come_into_place_whole_and_replace_the_old(tmp_path: Path) -> None:
    folder, file = tmp_path / "out", tmp_path / "deep" / "report.json"
    write_both(folder, file, "first")
    (folder / "left over").touch()
    write_both(folder, file, "second")
    assert [p.name for p in folder.iterdir()] == ["inside"]
    assert (folder / "inside").read_text() == file.read_text() == "second"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["deep", "out"]


def test_a_failure_leaves_every_output_of_the_last_good_run(tmp_path: Path) -> None:
    folder, file = tmp_path / "out", tmp_path / "report.json"
    write_both(folder, file, "good")
    with pytest.raises(RuntimeError), swapped_in(folder, file) as (new_folder, _):
        new_folder.mkdir()
        raise RuntimeError
    assert (folder / "inside").read_text() == file.read_text() == "good"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "report.json"]


def test_an_interruption_while_outputs_are_swapped_puts_all_old_ones_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, file = tmp_path / "out", tmp_path / "report.json"
    write_both(folder, file, "good")
    rename = Path.rename

    def interrupted(self: Path, target: Path) -> Path:
        if self.name == ".report.json.partial":
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_both(folder, file, "new")
    assert (folder / "inside").read_text() == file.read_text() == "good"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "report.json"]


def test_what_a_killed_run_left_is_put_right(tmp_path: Path) -> None:
    old = tmp_path / ".out.replaced"
    old.mkdir()
    (old / "inside").write_text("good")
    (tmp_path / ".out.partial").write_text("half")
    with pytest.raises(RuntimeError), swapped_in(tmp_path / "out"):
        raise RuntimeError
    assert (tmp_path / "out" / "inside").read_text() == "good"
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_hash_follows_content_and_names_but_not_the_place(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name / "sub").mkdir(parents=True)
        (tmp_path / name / "sub" / "file").write_text("text")
    assert sha256_of(tmp_path / "one") == sha256_of(tmp_path / "two")
    (tmp_path / "two" / "sub" / "file").rename(tmp_path / "two" / "sub" / "other")
    assert sha256_of(tmp_path / "one") != sha256_of(tmp_path / "two")


def test_json_lines_keep_unicode_line_separators_within_a_line(tmp_path: Path) -> None:
    values = ["one\u2028two", "three\x85four\r\nfive", "🐕"]
    write_json_lines(tmp_path / "x.jsonl", values)
    assert list(read_json_lines(tmp_path / "x.jsonl")) == values
