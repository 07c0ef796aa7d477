import csv

import pytest
import timm
import torch
from torch import nn
from typer.testing import CliRunner

from groupmix_sam.cli import app
from groupmix_sam.errors import InvalidInputError, RuntimeUnavailableError, UnknownNameError
from groupmix_sam.evaluate.profiling import cost_table, measure_costs, peak_mib
from groupmix_sam.evaluate.tables import table


def test_peak_by_hand():
    """Of three maps in a row two are held at once: 8 and 16 channels of 64 x 64 in fp32; a view holds nothing more."""
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 8, 1), nn.Conv2d(8, 16, 1), nn.Flatten())
    assert peak_mib(model, torch.randn(1, 3, 64, 64)) == (8 + 16) * 64 * 64 * 4 / 2**20


def test_linear_attention_has_the_macs_that_it_says():
    """Convolutions and linear layers, and the two products of each block's attention, which thop leaves out."""
    cost = measure_costs(["gmf_sam_test"], 64, rounds=0)[0]
    model = timm.create_model("gmf_sam_test")
    assert cost.parameters == cost.thop_parameters == sum(p.numel() for p in model.parameters())
    convolutions = 0

    def count(module, args, out):
        nonlocal convolutions
        per_output = module.weight[0].numel()
        convolutions += out.numel() * per_output

    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            module.register_forward_hook(count)
    model.eval()(torch.zeros(1, 3, 64, 64))
    # Four blocks, 32 wide after the fifth segment has left: k^T v and q (k^T v) of all heads at once, by number of tokens.
    attention = sum(2 * tokens * 32 * 32 for tokens in (256, 64, 16, 16))
    assert cost.macs == convolutions + attention


def test_stages_add_up():
    whole, *parts = measure_costs(["gmf_sam_test"], 64, stages=True, rounds=2)
    assert [part.part for part in parts][:6] == ["stem", "stages.0", "stages.1", "stages.2", "stages.3", "neck"]
    for what in ("parameters", "thop_parameters", "thop_macs", "macs"):
        assert sum(getattr(part, what) for part in parts) == getattr(whole, what)
    assert all(len(part.seconds) == 2 for part in parts)
    assert sum(part.seconds[0] for part in parts) <= whole.seconds[0]


def test_paper():
    """Table 2 has the student's 14.78 M parameters and 45623.54 M multiply-accumulates at 1024; those go with the area."""
    cost = measure_costs(["sam_resnet18"], 64, rounds=0)[0]
    assert (cost.thop_parameters, cost.thop_macs * 16**2) == (14_782_528, 45_623_541_760)
    assert cost.parameters - cost.thop_parameters == 256 * 64 * 64, "thop does not see the position embedding"


def test_any_model_of_timms():
    """ResNet18 as everybody counts it: 11.69 M and 1.82 GMACs at 224."""
    cost = measure_costs(["resnet18"], 224, rounds=0)[0]
    assert cost.parameters == 11_689_512
    assert cost.macs / 1e9 == pytest.approx(1.814, abs=1e-3)


def test_what_is_wrong_is_said():
    with pytest.raises(UnknownNameError, match="did you mean gmf_sam_"):
        measure_costs(["gmf_sam_tset"])
    with pytest.raises(InvalidInputError, match="vit_tiny_patch16_224 does not take images of 100 pixels"):
        measure_costs(["vit_tiny_patch16_224"], 100)
    with pytest.raises(RuntimeUnavailableError, match="the device 'nowhere' cannot be used"):
        measure_costs(["gmf_sam_test"], 64, device="nowhere")
    with pytest.raises(InvalidInputError, match="multiples of 16"):
        measure_costs(["gmf_sam_test"], 100)
    with pytest.raises(InvalidInputError, match="the image size is -16"):
        measure_costs(["gmf_sam_test"], -16)


def test_command(tmp_path):
    args = ["profile", "gmf_sam_test", "--image-size", "64", "--stages", "--rounds", "1"]
    out = tmp_path / "new" / "costs.csv"
    done = CliRunner().invoke(app, [*args, "--format", "csv", "--output", str(out)], catch_exceptions=False)
    assert done.exit_code == 0
    rows = list(csv.DictReader(out.read_text().splitlines()))
    whole = measure_costs(["gmf_sam_test"], 64, rounds=0)[0]
    assert rows[0]["MACs (thop)"] == str(whole.thop_macs)
    assert sum(int(row["parameters"]) for row in rows[1:]) == whole.parameters
    printed = CliRunner().invoke(app, args, catch_exceptions=False).stdout
    assert printed.splitlines()[0].split()[:3] == ["encoder", "part", "parameters"]


def test_tables():
    cells = [["a", "b"], ["1,5", "x"]]
    assert table(cells, "csv") == 'a,b\n"1,5",x'
    assert table(cells, "markdown") == "| a   | b |\n|-----|---|\n| 1,5 | x |"
    assert table(cells) == "a    b\n1,5  x"
    assert "[bold] 高い  x" in table([["a", "b"], ["[bold] 高い", "x"]]), (
        "neither markup nor cut; wide letters fill two columns"
    )
    assert len(table([["a"], ["b" * 500]]).splitlines()[-1]) == 500
    with pytest.raises(UnknownNameError, match="did you mean markdown"):
        table(cells, "markdow")
    assert cost_table([])[0][0] == "encoder"
