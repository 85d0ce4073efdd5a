"""Every array of the second set of golden vectors is an input or an expectation of a test.

The tests of an array are named after its file's method, in `test_peer_vectors2*.py`.
"""

import pytest

from adapters import peer_vectors2 as pv2

ARRAYS = {
    "gem": (
        "gem_{224x224,336x448,112x448,160x192}_feat",
        "gem_224x224_{ori_feat,logits30,logits30_up,minmax30,logits56}",
        "gem_336x448_{logits30,minmax30}",
        "gem_variant_{depth4,iter0,iter3,temp10}_224x224_feat",
        "gem_pos_{21x28,10x12,20x9}",
    ),
    "clip_surgery": (
        "surgery_{224x224,336x336,112x448}_{feat,cls}",
        "surgery_{224x224,336x336}_{logits30,weight30,fs30,map30,redundant5}",
        "surgery_224x224_{logits56,weight56,fs56}",
        "surgery_pos_21x21",
        "surgery_reused_224x224_feat",  # from which ours must differ
    ),
    "lposs": (
        "lposs_{A,B}_{feat,logits}",
        "lposs_P_{image_u8,logits}",
        "lposs_{W,S}_{image_u8,dino,clip,text}",
        "lposs_A_{default,k60}",
        "lposs_B_other",
        "lposs_P_{lab,default,tau05_r5}",
        "lposs_{W,S}_{patch,plus}",
        "lposs_S_nodes",
    ),
    "dinoiser": (
        "{obj_proj,bkg_decoder}.{weight,bias}",
        "dinoiser_{224x224,300x420}_{maskclip_feat,bkg_logit,feat,logits30,prob30,prob30_bkg}",
        "dinoiser_224x224_{inter,corr,prob30_bkg_mid}",
        "dinoiser_pos_{21x28,19x27,10x12}",
    ),
    "talk2dino": (
        "t2d_{linear_layer,hidden_layers.0}.{weight,bias}",
        "t2d_{patch_feat,cls_query,patch_keys,text_raw}",
        "t2d_{template_text,text30,sim30,cls_attention_logits}",
        "t2d_{mask30_bg,mask30_bg_lambda08,up30,up30_bg,pamr4_bg_96x80}",
        "t2d_{voc21_clip_text,real_vitb_voc21}",  # only with OVSS_REFINE_TALK2DINO
    ),
    "groupvit": (
        "groupvit_{logit_scale,text30}",
        "groupvit_112x112_{assign1,assign2,group_feat,avg_feat,group_index,group_map,top5}",
        "groupvit_112x112_{pred30,pred30_bg95,pred30_bg05,hf_seg30}",
    ),
    "cliptrase": (
        "cliptrase_{224x224,336x336}_{feat,cls,similarity11,logits30}",
        "cliptrase_{224x224,336x336}_{release,small}_{dbscan,pred_before,label}",
    ),
    "lavg": ("lavg_masks", "lavg_224x224_{logits56,logits56_voc21}"),
}
# Of the state of a model, all of which is loaded: `groupvit_model` checks that nothing is left.
STATE = "groupvit_sd::"


def expand(pattern):
    """Return the names that a pattern stands for: "a{b,c}" is ab and ac."""
    head, _, rest = pattern.partition("{")
    if not rest:
        return [pattern]
    choices, _, tail = rest.partition("}")
    return [head + choice + end for choice in choices.split(",") for end in expand(tail)]


@pytest.mark.parametrize("name", ARRAYS)
def test_no_array_is_left_out(name):
    found = {key for key in pv2.load(name) if not key.startswith(STATE)}
    assert found == {key for pattern in ARRAYS[name] for key in expand(pattern)}


def test_no_file_is_left_out():
    assert {path.stem for path in pv2.VECTORS.folder().glob("*.npz")} == set(ARRAYS)
