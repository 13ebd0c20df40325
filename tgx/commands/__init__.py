"""The commands of `tgx`, a file each; `tgx.cli` has their table."""
