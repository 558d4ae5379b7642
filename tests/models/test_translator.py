import pytest
import torch

from limbeck.errors import LimbeckError
from limbeck.models.critic_classifier import CriticClassifier
from limbeck.models.translator import AttentionGate, Translator


def test_target_changes_the_planes_only() -> None:
    torch.manual_seed(0)
    translator = Translator(1, 3, 4)
    seen: list[torch.Tensor] = []
    translator.first.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    images = torch.rand(2, 1, 12, 20)
    one, other = (translator(images, torch.full((2,), target)) for target in (0, 2))
    assert one.shape == images.shape
    assert not torch.allclose(one, other)
    assert torch.equal(seen[0][:, :1], seen[1][:, :1])
    assert torch.equal(seen[0][:, 1:].amax((2, 3)), torch.tensor([[1.0, 0, 0]] * 2))
    assert torch.equal(seen[1][:, 1:].amin((2, 3)), torch.tensor([[0, 0, 1.0]] * 2))


def test_images_do_not_see_one_another_and_logits_have_their_own_first_level() -> None:
    torch.manual_seed(0)
    translator = Translator(3, 5, 4)
    images, target = torch.rand(3, 3, 16, 16), torch.tensor([0, 4, 2])
    # Batches of other sizes are multiplied in another order.
    torch.testing.assert_close(translator(images, target)[1:2], translator(images[1:2], target[1:2]))
    assert translator(images).shape == (3, 5)
    translator(images).sum().backward()
    without = {name.partition(".")[0] for name, p in translator.named_parameters() if p.grad is None}
    assert without == {"first", "gates", "decoder", "output"}


def test_attention_gate() -> None:
    gate = AttentionGate(2, 4)
    torch.nn.init.zeros_(gate.psi.weight)
    torch.nn.init.constant_(gate.psi.bias, 0.0)
    skip = torch.rand(1, 2, 3, 3)
    torch.testing.assert_close(gate(skip, torch.rand(1, 4, 3, 3)), skip / 2)  # sigmoid(0)


def test_convert() -> None:
    grey, colours = torch.rand(2, 1, 4, 4), torch.rand(2, 3, 4, 4)
    assert torch.equal(Translator(3, 2, 1).convert(grey), grey.repeat(1, 3, 1, 1))
    assert torch.equal(Translator(3, 2, 1).convert(colours), colours)
    weighed = 0.299 * colours[:, 0] + 0.587 * colours[:, 1] + 0.114 * colours[:, 2]
    torch.testing.assert_close(Translator(1, 2, 1).convert(colours)[:, 0], weighed)


def test_refuses_what_cannot_be() -> None:
    with pytest.raises(LimbeckError, match="a translator of 2 channels"):
        Translator(2, 3)
    with pytest.raises(LimbeckError, match="a pixel must be left"):
        CriticClassifier(["a", "b"], 1, (16, 16), width=4, depth=5)


def test_critic_says_classes_and_patches() -> None:
    torch.manual_seed(0)
    critic = CriticClassifier(["a", "b", "c"], 1, (32, 16), width=4, depth=3)
    widths = [m.out_channels for m in critic.modules() if isinstance(m, torch.nn.Conv2d)]
    assert widths == [4, 8, 16, 1, 3]
    images = torch.rand(2, 1, 32, 16)
    said = critic({"image": images})
    assert (said.logits.shape, said.realness.shape, said.features) == ((2, 3), (2, 4, 2), None)
    paper = CriticClassifier(["a", "b"], 3, (128, 128), width=1)
    assert [m.in_channels for m in paper.modules() if isinstance(m, torch.nn.Conv2d)] == [3, 1, 2, 4, 8, 16, 32, 32]
