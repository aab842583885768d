"""The optimizer of the shipped UNet."""

import pytest
import torch

from stages.diffusion.muon import UPDATE_SIZE, Muon, orthogonalize


@pytest.mark.parametrize("shape", [(8, 30), (30, 8), (12, 12), (8, 12)])
def test_an_orthogonalized_matrix_keeps_its_singular_vectors(shape):
    torch.manual_seed(0)
    u, _, v = torch.linalg.svd(torch.randn(shape), full_matrices=False)  # v: transposed
    values = torch.linspace(0.5, 3, min(shape))
    update = orthogonalize((u * values @ v)[None])[0]
    near_one = u.T @ update @ v.T
    assert (near_one.diagonal() > 0.6).all() and (near_one.diagonal() < 1.3).all()
    assert torch.allclose(near_one, near_one.diagonal().diag(), atol=1e-4)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_a_convolution_is_updated_as_its_matrix(memory_format):
    torch.manual_seed(0)
    start, gradient = torch.randn(6, 4, 3, 3), torch.randn(6, 4, 3, 3)
    convolution = torch.nn.Parameter(start.clone(memory_format=memory_format))
    matrix = torch.nn.Parameter(start.reshape(6, 36).clone())
    optimizer = Muon({"a": convolution, "b": matrix}, lr=0.1, weight_decay=0.01)
    for _ in range(3):
        convolution.grad = gradient.clone(memory_format=memory_format)
        matrix.grad = gradient.reshape(6, 36).clone()
        optimizer.step()
    assert torch.allclose(convolution.reshape(6, 36), matrix, atol=1e-5)
    # The size of an update is that of AdamW's, whatever the gradient's.
    step = start.reshape(6, 36) * (1 - 0.1 * 0.01) ** 3 - matrix.detach()
    assert step.square().mean().sqrt() == pytest.approx(3 * 0.1 * UPDATE_SIZE, rel=0.2)


def test_momentum_is_nesterovs_of_each_weight():
    gradients = torch.randn(3, 2, 8, 12, generator=torch.Generator().manual_seed(0))
    weights = {name: torch.nn.Parameter(torch.zeros(8, 12)) for name in "ab"}
    optimizer = Muon(weights, lr=1.0, weight_decay=0.0)
    momentum, expected = torch.zeros(2, 8, 12), torch.zeros(2, 8, 12)
    for of_step in gradients:
        for weight, gradient in zip(weights.values(), of_step):
            weight.grad = gradient.clone()
        optimizer.step()
        momentum = 0.95 * momentum + 0.05 * of_step
        update = orthogonalize(0.05 * of_step + 0.95 * momentum)
        expected -= UPDATE_SIZE * 12**0.5 * update
    torch.testing.assert_close(torch.stack(list(weights.values())).detach(), expected)


def test_an_update_does_not_depend_on_the_number_of_cores():
    generator = torch.Generator().manual_seed(0)
    start, gradient = torch.randn(2, 3, 128, 1152, generator=generator)
    threads = torch.get_num_threads()
    updated = []
    try:
        for cores in (1, 2, 3):
            torch.set_num_threads(cores)
            # Of three shapes: stacks of one matrix, whose products torch divides among the cores.
            weights = [
                torch.nn.Parameter(weight[:, : 1152 - i].clone()) for i, weight in enumerate(start)
            ]
            optimizer = Muon({str(i): weight for i, weight in enumerate(weights)}, 0.1, 0.01)
            for i, weight in enumerate(weights):
                weight.grad = gradient[i, :, : 1152 - i]
            optimizer.step()
            updated.append(torch.cat(weights, 1).detach())
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(updated[0], updated[1]) and torch.equal(updated[0], updated[2])


def test_a_weight_without_a_gradient_stays():
    used, unused = torch.nn.Parameter(torch.ones(3, 4)), torch.nn.Parameter(torch.ones(3, 4))
    used.grad = torch.randn(3, 4)
    Muon({"used": used, "unused": unused}, lr=0.1, weight_decay=0.1).step()
    assert (unused == 1).all() and (used != 1).all()


def test_vectors_and_outer_layers_get_adamw():
    torch.manual_seed(0)
    ours = {"norm.weight": torch.nn.Parameter(torch.ones(5))}
    for name in ("conv_in", "conv_out", "time_embedding.linear_1"):
        ours[f"{name}.weight"] = torch.nn.Parameter(torch.eye(4))
    theirs = [torch.nn.Parameter(weight.detach().clone()) for weight in ours.values()]
    muon = Muon(ours, lr=0.01, weight_decay=0.1)
    adamw = torch.optim.AdamW(theirs, lr=0.01, weight_decay=0.1)
    for _ in range(5):
        for weight, other in zip(ours.values(), theirs):
            weight.grad = torch.randn(weight.shape)
            other.grad = weight.grad.clone()
        muon.step()
        adamw.step()
    for weight, other in zip(ours.values(), theirs):
        assert torch.allclose(weight, other, atol=1e-6)
