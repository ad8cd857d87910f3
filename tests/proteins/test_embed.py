"""`vcell embed`, with a small ESM2 of random weights: headers, pooling, windows, transcripts, interruption, shares."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import torch

from tests.conftest import run_here
from vcell.errors import VcellError
from vcell.model.table import PerturbationTable
from vcell.proteins import embed as embedding
from vcell.proteins.esm import ProteinModel
from vcell.proteins.fasta import gene_of, read_fasta

transformers = pytest.importorskip("transformers")
LETTERS = "ACDEFGHIKLMNPQRSTVWY"
TOKENS = ["<cls>", "<pad>", "<eos>", "<unk>", *"LAGVSERTIDPKQNFYMHWCXBUZO.-", "<null_1>", "<mask>"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an ESM2 of two layers."""
    folder = tmp_path_factory.mktemp("esm2")
    (folder / "vocab.txt").write_text("\n".join(TOKENS))
    transformers.EsmTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    torch.manual_seed(0)
    config = transformers.EsmConfig(
        vocab_size=len(TOKENS), mask_token_id=32, pad_token_id=1, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=1026, position_embedding_type="rotary", token_dropout=True, emb_layer_norm_before=False,
    )  # fmt: skip
    transformers.EsmModel(config, add_pooling_layer=False).eval().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def model(checkpoint: Path) -> ProteinModel:
    return ProteinModel.load(str(checkpoint), torch.device("cpu"), window=40, overlap=10)


def protein(length: int, seed: int) -> str:
    return "".join(random.Random(seed).choices(LETTERS, k=length))


def fasta(folder: Path, genes: int = 50) -> Path:
    """Proteins as GENCODE publishes them; every third gene has two transcripts, every seventh a long one."""
    lines = []
    for number in range(genes):
        for transcript in range(2 if number % 3 == 0 else 1):
            length = 95 if number % 7 == 0 else 12 + number
            header = (
                f"ENSP{number}.1|ENST{number}.{transcript}|ENSG{number:011d}.2|-|-|G{number}-201|G{number}|{length}"
            )
            lines.append(f">{header}\n{protein(length, 100 * number + transcript)}*\n")
    path = folder / "proteins.fa"
    path.write_text("".join(lines))
    return path


def by_hand(model: ProteinModel, sequence: str) -> torch.Tensor:
    """The mean over residues of one sequence alone."""
    ids = torch.tensor([[TOKENS.index("<cls>"), *(TOKENS.index(letter) for letter in sequence), TOKENS.index("<eos>")]])
    with torch.inference_mode():
        return model.network(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state[0, 1:-1].mean(0)


@pytest.mark.parametrize(
    ("header", "gene", "kind"),
    [
        ("sp|P04637|P53_HUMAN Cellular tumor antigen p53 OS=Homo sapiens OX=9606 GN=TP53 PE=1 SV=4", "TP53", "UniProt"),
        ("sp|P0DP23|X_HUMAN Without a gene OS=Homo sapiens OX=9606 PE=1 SV=1", "", "UniProt"),
        ("ENSP00000269305.4 pep chromosome:GRCh38:17:1:2:-1 gene:ENSG00000141510.18 transcript:ENST1 gene_symbol:TP53 description:x", "TP53", "Ensembl"),
        ("ENSP00000269305.4 pep chromosome:GRCh38:17:1:2:-1 gene:ENSG00000141510.18 transcript:ENST1", "ENSG00000141510", "Ensembl"),
        ("ENSP00000493376.2|ENST00000641515.2|ENSG00000186092.7|OTTHUMG1|OTTHUMT1|OR4F5-201|OR4F5|326", "OR4F5", "GENCODE"),
        ("TP53 some words", "TP53", "plain"),
    ],
)  # fmt: skip
def test_headers_name_their_gene(header: str, gene: str, kind: str):
    assert gene_of(header) == (gene, kind)


def test_sequences_are_read_whatever_their_lines_and_letters(tmp_path: Path):
    path = tmp_path / "p.fa"
    path.write_text(">A\nmkt\nAY*\n\n>B x\nMK*JW\n>A\nMKTAY\n")
    found = read_fasta(path)
    assert found.of_gene == {"A": ["MKTAY", "MKTAY"], "B": ["MKXXW"]} and found.replaced == 2
    assert found.sequences == ["MKTAY", "MKXXW"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("A,1\n", "is not FASTA"),
        (">A\n\n", "holds no sequences"),
        (">A\nACGTACGT\n>B\nGGGTTTAA\n", "holds nucleotides"),
        ("", "is not FASTA"),
    ],
)
def test_what_is_no_protein_fasta_is_refused(text: str, words: str, tmp_path: Path):
    (tmp_path / "p.fa").write_text(text)
    with pytest.raises(VcellError, match=words):
        read_fasta(tmp_path / "p.fa")


@pytest.mark.numeric
def test_padding_and_special_tokens_do_not_count(model: ProteinModel):
    sequences = [protein(length, length) for length in (3, 40, 17)]
    torch.testing.assert_close(
        model.of_sequences(sequences), torch.stack([by_hand(model, s) for s in sequences]), atol=1e-5, rtol=1e-4
    )


@pytest.mark.numeric
def test_long_proteins_are_read_in_overlapping_windows_weighted_by_residues(model: ProteinModel):
    sequence = protein(95, 1)
    windows = [sequence[0:40], sequence[30:70], sequence[55:95]]
    assert model.pieces(sequence) == windows and model.pieces(sequence[:40]) == [sequence[:40]]
    assert model.pieces(sequence[:70]) == windows[:2]
    expected = torch.stack([by_hand(model, w) for w in windows]).mean(0)  # windows of one length
    torch.testing.assert_close(model.of_sequences([sequence])[0], expected, atol=1e-5, rtol=1e-4)


def embed(checkpoint: Path, source: Path, out: Path, *more: str) -> None:
    run_here(
        "embed",
        f"fasta={source}",
        f"out={out}",
        f"checkpoint={checkpoint}",
        "window=40",
        "overlap=10",
        "batch_residues=200",
        "device=cpu",
        *more,
    )


@pytest.mark.numeric
def test_a_gene_is_the_mean_of_its_transcripts(checkpoint: Path, model: ProteinModel, tmp_path: Path):
    source = fasta(tmp_path)
    embed(checkpoint, source, tmp_path / "t.pt")
    table = PerturbationTable.load(tmp_path / "t.pt")
    assert table.names == [f"G{n}" for n in range(50)] and table.width == 16
    expected = (by_hand(model, protein(15, 300)) + by_hand(model, protein(15, 301))) / 2
    torch.testing.assert_close(table.lookup(["G3"])[0], expected, atol=1e-5, rtol=1e-4)
    about = json.loads((tmp_path / "t.json").read_text())
    assert (
        about["genes"] == 50
        and about["transcripts"] == 67
        and about["window"] == 40
        and len(about["fasta_sha256"]) == 64
    )
    assert not (tmp_path / "t.pt.parts").exists()


def test_an_interrupted_table_continues_to_the_same_bytes(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    source = fasta(tmp_path)
    embed(checkpoint, source, tmp_path / "whole.pt")
    calls = []
    of_sequences = ProteinModel.of_sequences

    def interrupted(self: ProteinModel, sequences: list[str]) -> torch.Tensor:
        calls.append(sequences)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return of_sequences(self, sequences)

    monkeypatch.setattr(ProteinModel, "of_sequences", interrupted)
    with pytest.raises(KeyboardInterrupt):
        embed(checkpoint, source, tmp_path / "t.pt")
    assert not (tmp_path / "t.pt").exists()
    with pytest.raises(VcellError, match="parts of another table"):
        embed(checkpoint, source, tmp_path / "t.pt", "overlap=5")
    done = len(list((tmp_path / "t.pt.parts").glob("*.npy")))
    embed(checkpoint, source, tmp_path / "t.pt")
    assert done == 3 and calls[3] == calls[4]  # goes on with the batch that was not finished
    assert (tmp_path / "t.pt").read_bytes() == (tmp_path / "whole.pt").read_bytes()


def test_processes_share_the_work(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    source = fasta(tmp_path)
    embed(checkpoint, source, tmp_path / "alone.pt")
    for shard in (1, 2, 0):
        assert not (tmp_path / "t.pt").exists()
        embed(checkpoint, source, tmp_path / "t.pt", "shards=3", f"shard={shard}")
    assert (tmp_path / "t.pt").read_bytes() == (tmp_path / "alone.pt").read_bytes()
    assert "the process that is done last writes" in capsys.readouterr().out


def test_genes_are_found_by_any_name_and_those_without_a_protein_named(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "p.fa").write_text(f">MARCHF8\n{protein(20, 1)}\n>STAT1\n{protein(30, 2)}\n")
    (tmp_path / "genes.csv").write_text("gene\nMARCH8\nSTAT1\nMALAT1\n")
    embed(checkpoint, tmp_path / "p.fa", tmp_path / "t.pt", f"genes={tmp_path / 'genes.csv'}")
    assert PerturbationTable.load(tmp_path / "t.pt").names == ["MARCH8", "STAT1"]
    assert "1 genes have no protein there: MALAT1" in capsys.readouterr().out
    assert json.loads((tmp_path / "t.json").read_text())["without_protein"] == ["MALAT1"]


def test_another_kind_of_model_is_named_and_refused(tmp_path: Path):
    config = transformers.BertConfig(
        vocab_size=30, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    transformers.BertModel(config).save_pretrained(tmp_path / "prot_bert")
    (tmp_path / "p.fa").write_text(">A\nMKT\n")
    with pytest.raises(VcellError, match="prot_bert is bert, not ESM2"):
        embed(tmp_path / "prot_bert", tmp_path / "p.fa", tmp_path / "t.pt")
    (tmp_path / "empty").mkdir()
    with pytest.raises(VcellError, match="the folder is no checkpoint"):
        embed(tmp_path / "empty", tmp_path / "p.fa", tmp_path / "t.pt")
    with pytest.raises(VcellError, match=r"must end in \.pt"):
        embed(tmp_path / "empty", tmp_path / "p.fa", tmp_path / "t.csv")
    assert not list(tmp_path.glob("t.*"))


def test_batches_are_full_but_not_overfull(model: ProteinModel):
    sequences = sorted((protein(n, n) for n in range(3, 60)), key=len)
    batches = embedding.batches_of(sequences, model, 200)
    assert [s for batch in batches for s in batch] == sequences
    for batch in batches:
        pieces = [piece for s in batch for piece in model.pieces(s)]
        assert len(batch) == 1 or len(pieces) * max(map(len, pieces)) <= 200
