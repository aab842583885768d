"""Training a VAE's decoder further: its losses."""

import diffusers
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from stages.diffusion import from_scratch, perceptual, train_decoder
from stages.diffusion.train_decoder import LUMA

CAPTIONS = [["a lake"], ["a road"]]


@pytest.fixture
def images():
    """Random textures [2, 3, 32, 32]."""
    return torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_the_spectral_loss_measures_how_much_detail_there_is_not_where(images):
    def loss(changed):
        return train_decoder.spectral_loss(images, changed).item()

    assert loss(images) == 0
    assert loss(images + 0.3) == pytest.approx(0, abs=1e-4)  # brighter, as detailed
    # Twice the contrast is the logarithm of 2, less what is below the floor.
    assert loss(2 * images) == pytest.approx(0.69, abs=0.06)
    blurred = F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="reflect"), 3, stride=1)
    assert loss(images.flip(-1)) < 0.6 * loss(blurred)
    # The L1 loss prefers the blur to the mirrored texture.
    assert (images - images.flip(-1)).abs().mean() > 1.2 * (images - blurred).abs().mean()


def test_decoder_and_discriminator_have_no_part_in_each_others_gradients(images):
    torch.manual_seed(0)
    discriminator = train_decoder.make_discriminator().eval()
    decoded = (images * 0.5).requires_grad_()

    def gradients(loss):
        weights = [decoded, *discriminator.parameters()]
        return torch.autograd.grad(loss, weights, allow_unused=True)

    both = gradients(train_decoder.adversarial_loss(discriminator, images, decoded, 1.0))
    real, fake = (discriminator(train_decoder.brightness(x)) for x in (images, decoded.detach()))
    hinge = gradients(F.relu(1 - real).mean() + F.relu(1 + fake).mean())
    for expected, gradient in zip(hinge[1:], both[1:]):
        torch.testing.assert_close(gradient, expected)
    quiet = gradients(train_decoder.adversarial_loss(discriminator, images, decoded, 0.0))
    deceit = gradients(-discriminator(train_decoder.brightness(decoded)).mean())
    expected = quiet[0] + train_decoder.ADVERSARIAL_WEIGHT * deceit[0]
    torch.testing.assert_close(both[0], expected)


def test_the_discriminator_moves_brightness_alone(images):
    """Its gradient has the same direction in the colors of all pixels: that of brightness."""
    torch.manual_seed(0)
    discriminator = train_decoder.make_discriminator().eval()
    decoded = (images * 0.5).requires_grad_()
    gradients = []
    for warmup in (0.0, 1.0):
        loss = train_decoder.adversarial_loss(discriminator, images, decoded, warmup)
        gradients.append(torch.autograd.grad(loss, decoded)[0])
    adversarial = gradients[1] - gradients[0]  # [B, 3, H, W]
    assert adversarial.abs().max() > 1e-5
    expected = adversarial.sum(1, keepdim=True) * torch.tensor(LUMA).float().view(1, 3, 1, 1)
    torch.testing.assert_close(adversarial, expected, rtol=1e-2, atol=1e-6)


def test_a_word_network_learns_the_captions_words_and_its_loss_tells_the_images_apart(tmp_path):
    """Horizontal or vertical stripes, which have the same brightness and contrast."""
    rows, columns = np.indices((32, 32))
    horizontal, vertical = (np.where(stripe % 8 < 4, 60, 190) for stripe in (rows, columns))
    tiles = np.stack([horizontal, vertical] * 8).astype(np.uint8)[..., None].repeat(3, axis=-1)
    captions = [["rows of trees", "rows"], ["Columns of trees"]] * 8
    network = perceptual.train_word_network(tiles, captions, 40, 8, 4, 0, tmp_path)
    x = from_scratch.normalize_pixels(tiles[:2])
    # Words by frequency: of, trees, and then one kind's words.
    seen = network(x)[:, 2:].argmax(1).tolist()
    assert len(set(seen)) == 2
    assert (network(x)[:, :2] > 1).all()
    y = x.clone().requires_grad_()
    assert perceptual.perceptual_loss(network, x, y).item() == pytest.approx(0, abs=1e-6)
    brighter = perceptual.perceptual_loss(network, x, x + 0.1)
    other = perceptual.perceptual_loss(network, x, y.flip(0))
    assert other > 2 * brighter > 0
    other.backward()
    assert y.grad.abs().max() > 0


def test_a_decoder_that_diverges_is_one_line(tmp_path):
    vae = from_scratch.make_vae([8, 16], 4, 32)
    vae.decoder.conv_out.bias.data.fill_(float("inf"))
    tiles = torch.zeros(2, 32, 32, 3, dtype=torch.uint8).numpy()
    with pytest.raises(SystemExit, match="train_base.decoder_steps: .* NaN or inf"):
        train_decoder.train_decoder(vae, tiles, CAPTIONS, 1, batch_size=2, seed=0, cache=tmp_path)
    assert not list(tmp_path.glob("*.safetensors"))


def test_a_decoder_is_trained_and_saved_without_a_warning(tmp_path, caplog):
    diffusers.utils.logging.enable_propagation()
    vae = from_scratch.make_vae([8, 16], 4, 32)
    tiles = torch.zeros(2, 32, 32, 3, dtype=torch.uint8).numpy()
    vae = train_decoder.train_decoder(vae, tiles, CAPTIONS, 0, batch_size=2, seed=0, cache=tmp_path)
    from_scratch.save_part(tmp_path / "vae", vae, torch.float16)
    assert "should be kept in float32" not in caplog.text
    saved = load_file(tmp_path / "vae/diffusion_pytorch_model.safetensors")
    assert {weight.dtype for weight in saved.values()} == {torch.float16}
    assert {weight.dtype for weight in vae.parameters()} == {torch.float32}


def test_rates_warm_up_and_fall_crops_differ_and_weights_are_averaged(tmp_path, monkeypatch):
    rates, crops = [], []
    draw_crops = train_decoder.draw_crops

    class NotedAdamW(torch.optim.AdamW):
        def step(self, closure=None):
            rates.append([group["lr"] for group in self.param_groups if "peak_lr" in group])
            return super().step(closure)

    def note_crops(*args):
        x, y = draw_crops(*args)
        crops.append(x)
        return x, y

    monkeypatch.setattr(torch.optim, "AdamW", NotedAdamW)
    monkeypatch.setattr(train_decoder, "draw_crops", note_crops)
    monkeypatch.setattr(train_decoder, "WARMUP_STEPS", 2)
    # As if all weights had been 0 at every step.
    monkeypatch.setattr(
        train_decoder, "update_ema", lambda ema, *_: [weight.zero_() for weight in ema.values()]
    )
    vae = from_scratch.make_vae([8, 16], 4, 32)
    tiles = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    train_decoder.train_decoder(vae, tiles, CAPTIONS, 4, batch_size=2, seed=0, cache=tmp_path)
    factors = np.array([[0.505], [0.8636], [0.51], [0.1564]])
    expected = factors * [train_decoder.LR, train_decoder.DISCRIMINATOR_LR]
    np.testing.assert_allclose([step for step in rates if step], expected, rtol=1e-3)
    assert len(crops) == 4 and not torch.equal(crops[0], crops[1])
    assert not any(weight.any() for weight in vae.decoder.parameters())
    assert all(weight.any() for weight in vae.encoder.conv_in.parameters())
