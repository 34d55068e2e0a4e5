"""`cvvae info` of what is no latent file of ours; of those, the tests of `cvvae encode` ask it."""

import command_line
import numpy as np
import torch
from safetensors.torch import save_file

folder, cvvae, answer = command_line.folder, command_line.cvvae, command_line.answer


def test_info_describes_a_plain_tensor_and_how_to_decode_it(cvvae, answer, tmp_path):
    values = np.zeros((3, 4, 5, 6), np.float16)
    np.save(tmp_path / "z.npy", values)
    torch.save({"samples": torch.from_numpy(values)}, tmp_path / "z.pt")
    save_file({"latents": torch.from_numpy(values)}, tmp_path / "z.safetensors")
    for name, key in (("z.npy", ""), ("z.pt", "samples"), ("z.safetensors", "latents")):
        told = answer("info", tmp_path / name)
        assert (told["kind"], told["key"], told["shape"], told["dtype"]) == ("tensor", key, [3, 4, 5, 6], "float16")
        assert told["readings"] == [
            {"layout": "tzhw", "z": 4, "frames": 9, "width": 48, "height": 40},
            {"layout": "zthw", "z": 3, "frames": 13, "width": 48, "height": 40},
        ]
        out = cvvae("info", tmp_path / name)[1]
        assert "z = 4, 9 frames of 48x40" in out and f"{tmp_path / name} OUT.mp4 --model" in out and "--scaled" in out
    save_file({"latent_tensor": torch.zeros(1, 16, 1, 2, 2)}, tmp_path / "comfyui.latent")
    out = cvvae("info", tmp_path / "comfyui.latent")[1]
    assert "z = 16, 1 frame of 16x16" in out and "ComfyUI" in out and "5.48998" in out
    np.save(tmp_path / "flat.npy", np.zeros(7, np.float32))
    assert "not possible" in cvvae("info", tmp_path / "flat.npy")[1]
