# shellcheck shell=bash
# What a row of the tables trains by: its name, and the options of distill that it stands for. To be
# sourced. A name that is not here is a method of distill with its own settings (tent, cotta, pkd,
# cwd, pseudo-label, akd, kd). All rows share frames, uplink, epochs, held-out part and coding, and
# all with a teacher send their last state.
#
#   kd+anchors   kd, held to the student's first answers on frames of its source domain.
#
#   paper        The paper's Eq. 5 and 6 to the letter, where it has one: query alignment through a
#                linear phi, alignment of the last attention's output at the visual positions, and
#                the cross-entropy on the teacher's answers, in sum. Trained are the language
#                model's norms, biases, LoRA and the query tokens; the last state is sent. The paper
#                leaves open, and here is: every lambda (1, on terms that are divided by the
#                teacher's mean square; akd has 0.03, 0.1 and 1 on terms of equal gradients), how
#                phi begins (a ridge regression), which attention (the last one), optimiser, step
#                size, epochs, batch, LoRA's rank, and that a part is held out. Its 1.65 million
#                parameters are norms, biases and queries without LoRA; here all are sent, in the
#                coding that all rows share.
#
#   attention    Only the self-attention's projections of the language model learn (Zhu et al., How
#                to teach large multimodal models new skills, arXiv 2510.08564, 'SA Proj.'), by
#                cross-entropy as there. There the projections themselves are tuned, here their
#                LoRA, as everything is sent as one overlay.
#
#   self-replay  Self-generated replay (Marek et al., arXiv 2605.26097): what the student itself
#                says is trained on beside the new task. There a language model samples its own
#                texts; a student of pictures cannot make pictures, so here it answers those of the
#                source domain, greedily, at sequence 0. Old and new weigh the same in a step.
#
# Not a row: Switch-KD (Sun et al., arXiv 2604.14629), the student's visual tokens through the
# teacher's language model. It needs that model in every step, where labels are asked once here.

# recipe_of ROW ANCHORS: sets `recipe`. ANCHORS: the file with the source frames' tokens.
recipe_of() {
  case $1 in
    tent | cotta | none) recipe=(--method "$1") && return ;;
    kd+anchors) recipe=(--method kd --anchors "$2") ;;
    paper)
      recipe=(--method akd --kl none --set balance=none --set repr_at=visual
        --set query_weight=1 --set repr_weight=1 --set ce_weight=1)
      ;;
    attention) recipe=(--method pseudo-label --train lora.attention) ;;
    self-replay)
      recipe=(--method pseudo-label --anchors "$2" --set anchor_targets=answers
        --set anchor_weight=1)
      ;;
    *) recipe=(--method "$1") ;;
  esac
  recipe+=(--set choose=last)
}
