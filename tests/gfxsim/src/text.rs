//! Reads an instruction in the disassembler's words, so that no encoding has to be known here.

use crate::inst::{ACCUMULATORS, Detail, Dpp, Inst, Modifiers, OPERANDS, Operand, Part, Rest, Sdwa, scalar};

/// Where the workgroup's memory begins among flat addresses.
pub const LDS_APERTURE: u64 = 0x4000_0000_0000_0000;
/// Where a lane's own memory begins among flat addresses.
pub const SCRATCH_APERTURE: u64 = 0x5000_0000_0000_0000;

/// What says nothing about the result of a model that does one thing after the other.
const IGNORED_OPERANDS: &[&str] =
    &["s_waitcnt", "s_wait_", "s_delay_alu", "s_sendmsg", "s_setreg", "s_barrier", "s_clause", "s_sleep", "s_nop"];
/// Hints to caches and about ordering.
const IGNORED_MODIFIERS: &[&str] = &["slc", "sc1", "nt", "dlc", "gds", "scc", "done", "scope", "fi"];

/// The instruction, without what executes it. An error names what could not be read.
pub fn parse(text: &str) -> Result<Inst, String> {
    let text = text.trim();
    if let Some((first, second)) = text.split_once("::") {
        let mut inst = parse(first)?;
        inst.second = Some(Box::new(parse(second)?));
        inst.text = text.into();
        return Ok(inst);
    }
    let (name, rest) = text.split_once(char::is_whitespace).unwrap_or((text, ""));
    let mut inst = Inst::new(name, text);
    if IGNORED_OPERANDS.iter().any(|start| name.starts_with(start)) {
        return Ok(inst);
    }
    for word in words(rest) {
        let read = read_operand(&mut inst, &word)? || read_call(&mut inst, &word)? || read_modifier(&mut inst, &word)?;
        if !read {
            return Err(format!("`{word}` in `{text}`"));
        }
    }
    if name.contains("_co_") && inst.count >= 4 {
        inst.first_source = 2;
    } else if name.starts_with("v_cmpx") && inst.count == 2 {
        inst.first_source = 0;
    }
    inst.plain = inst.dpp == Dpp::None && inst.sdwa.is_none();
    inst.modified = inst.modifiers.iter().any(|m| *m != Modifiers::default());
    Ok(inst)
}

/// Operands and modifiers: what blanks and commas outside of brackets separate.
fn words(text: &str) -> Vec<String> {
    let (mut words, mut word, mut depth) = (Vec::new(), String::new(), 0u32);
    for c in text.chars() {
        match c {
            '[' | '(' => depth += 1,
            ']' | ')' => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth == 0 && (c == ',' || c.is_whitespace()) {
            words.push(std::mem::take(&mut word));
        } else {
            word.push(c);
        }
    }
    words.push(word);
    words.retain(|w| !w.is_empty());
    words
}

fn read_operand(inst: &mut Inst, word: &str) -> Result<bool, String> {
    let mut modifiers = Modifiers::default();
    let mut name = word;
    if let Some(rest) = name.strip_prefix('-').filter(|r| !r.starts_with(|c: char| c.is_ascii_digit())) {
        (modifiers.negative, name) = (true, rest);
    }
    for (open, close) in [("neg(", ")"), ("sext(", ")"), ("abs(", ")"), ("|", "|"), ("lit(", ")"), ("lit64(", ")")] {
        if let Some(inside) = name.strip_prefix(open).and_then(|rest| rest.strip_suffix(close)) {
            modifiers.negative |= open == "neg(";
            modifiers.sign_extended |= open == "sext(";
            modifiers.absolute |= open == "abs(" || open == "|";
            name = inside;
        }
    }
    if let Some(whole) = name.strip_suffix(".h") {
        (modifiers.high, name) = (true, whole);
    } else if let Some(whole) = name.strip_suffix(".l") {
        name = whole;
    }
    let Some((operand, registers)) = register(name).or_else(|| Some((number(name)?, 0))) else { return Ok(false) };
    let k = inst.count;
    if k == OPERANDS {
        return Err(format!("more than {OPERANDS} operands in `{}`", inst.text));
    }
    (inst.operands[k], inst.registers[k], inst.modifiers[k]) = (operand, registers, modifiers);
    inst.count += 1;
    Ok(true)
}

/// A register or a range of them, and how many.
fn register(name: &str) -> Option<(Operand, u8)> {
    let (first, count) = match name {
        "off" => return Some((Operand::None, 0)),
        "scc" | "src_scc" => return Some((Operand::Scc, 1)),
        "src_shared_base" | "src_shared_limit" => return Some((Operand::Aperture(LDS_APERTURE), 2)),
        "src_private_base" | "src_private_limit" => return Some((Operand::Aperture(SCRATCH_APERTURE), 2)),
        "vcc" => (scalar::VCC, 2),
        "vcc_lo" => (scalar::VCC, 1),
        "vcc_hi" => (scalar::VCC + 1, 1),
        "exec" => (scalar::EXEC, 2),
        "exec_lo" => (scalar::EXEC, 1),
        "exec_hi" => (scalar::EXEC + 1, 1),
        "m0" => (scalar::M0, 1),
        "null" => (scalar::NULL, 1),
        "flat_scratch" => (scalar::FLAT_SCRATCH, 2),
        "flat_scratch_lo" => (scalar::FLAT_SCRATCH, 1),
        "flat_scratch_hi" => (scalar::FLAT_SCRATCH + 1, 1),
        _ => {
            if let Some(range) = name.strip_prefix("ttmp") {
                let (first, count) = span(range)?;
                return Some((Operand::Scalar(scalar::TRAP + first), count));
            }
            let (first, count) = span(name.get(1..)?)?;
            return match name.as_bytes()[0] {
                b'v' => Some((Operand::Vector(first), count)),
                b'a' => Some((Operand::Vector(first + ACCUMULATORS), count)),
                b's' => Some((Operand::Scalar(first), count)),
                _ => None,
            };
        }
    };
    Some((Operand::Scalar(first), count))
}

/// `7`, `[7]` or `[7:10]`: the first and how many.
fn span(text: &str) -> Option<(u16, u8)> {
    let inside = text.strip_prefix('[').and_then(|t| t.strip_suffix(']')).unwrap_or(text);
    let (first, last) = inside.split_once(':').unwrap_or((inside, inside));
    let (first, last): (u16, u16) = (first.parse().ok()?, last.parse().ok()?);
    (first < 256).then_some((first, u8::try_from(last.checked_sub(first)? + 1).ok()?))
}

fn number(text: &str) -> Option<Operand> {
    let (negative, digits) = text.strip_prefix('-').map_or((false, text), |d| (true, d));
    if !digits.starts_with(|c: char| c.is_ascii_digit()) {
        return None;
    }
    let integer = match digits.strip_prefix("0x") {
        Some(hex) => Some(u64::from_str_radix(hex, 16).ok()? as i64),
        None => digits.parse::<i64>().ok(),
    };
    match integer {
        Some(v) => Some(Operand::Int(if negative { v.wrapping_neg() } else { v })),
        None => text.parse().ok().map(Operand::Float),
    }
}

/// `gpr_idx(SRC0,DST)` and register names of the hardware, which look like calls.
fn read_call(inst: &mut Inst, word: &str) -> Result<bool, String> {
    if let Some(list) = word.strip_prefix("gpr_idx(") {
        let bits = ["SRC0", "SRC1", "SRC2", "DST"].iter().enumerate();
        inst.detail = Detail::Indexed(bits.fold(0, |set, (bit, name)| set | u8::from(list.contains(name)) << bit));
        return Ok(true);
    }
    Ok(word.starts_with("hwreg("))
}

fn read_modifier(inst: &mut Inst, word: &str) -> Result<bool, String> {
    let (name, value) = word.split_once(':').unwrap_or((word, ""));
    if name == "offset" && value.starts_with("swizzle") {
        // The pattern is read from the encoding.
        return Ok(true);
    }
    let int = || match number(value) {
        Some(Operand::Int(v)) => Ok(v),
        _ => Err(format!("`{word}` in `{}`", inst.text)),
    };
    match name {
        "offset" => inst.offset = int()?,
        "offset0" => inst.offsets[0] = int()?,
        "offset1" => inst.offsets[1] = int()?,
        "clamp" => inst.clamp = true,
        "mul" => inst.factor = int()? as f32,
        "div" => inst.factor = 1.0 / int()? as f32,
        "glc" | "sc0" => inst.returns = true,
        "th" => inst.returns |= value.contains("RETURN"),
        "bitop3" => inst.detail = Detail::Table(int()? as u8),
        "op_sel" => inst.op_sel = bits(value),
        "op_sel_hi" => inst.op_sel_hi = Some(bits(value)),
        "neg_lo" => inst.negative_low = bits(value),
        "neg_hi" => inst.negative_high = bits(value),
        "row_mask" => inst.row_mask = int()? as u8,
        "bank_mask" => inst.bank_mask = int()? as u8,
        "bound_ctrl" => inst.bound_control = true,
        // Broadcasts within a matrix: no kernel here uses them, and they are not modelled.
        "cbsz" | "abid" | "blgp" => return Ok(int()? == 0),
        _ if IGNORED_MODIFIERS.contains(&name) => {}
        _ => return Ok(read_dpp(inst, name, value) || read_sdwa(inst, name, value)),
    }
    Ok(true)
}

/// The numbers of `[1,0,3,2]`.
fn list(text: &str) -> Vec<u8> {
    text.trim_matches(['[', ']']).split(',').filter_map(|n| n.trim().parse().ok()).collect()
}

/// The bits of `[1,0,1]`, lowest first.
fn bits(text: &str) -> u8 {
    list(text).iter().rev().fold(0, |set, bit| set << 1 | (bit & 1))
}

fn read_dpp(inst: &mut Inst, name: &str, value: &str) -> bool {
    let count = || value.parse::<u8>().ok();
    let dpp = match name {
        "quad_perm" => list(value).try_into().ok().map(Dpp::Quad),
        "dpp8" => list(value).try_into().ok().map(Dpp::Eight),
        "row_shl" => count().map(Dpp::RowShiftLeft),
        "row_shr" => count().map(Dpp::RowShiftRight),
        "row_ror" => count().map(Dpp::RowRotate),
        "row_mirror" => Some(Dpp::RowMirror),
        "row_half_mirror" => Some(Dpp::HalfRowMirror),
        "row_share" | "row_newbcast" => count().map(Dpp::RowShare),
        "row_xmask" => count().map(Dpp::RowXor),
        "row_bcast" if value == "15" => Some(Dpp::Broadcast15),
        "row_bcast" if value == "31" => Some(Dpp::Broadcast31),
        "wave_shl" => Some(Dpp::WaveShiftLeft),
        "wave_shr" => Some(Dpp::WaveShiftRight),
        "wave_rol" => Some(Dpp::WaveRotateLeft),
        "wave_ror" => Some(Dpp::WaveRotateRight),
        _ => None,
    };
    let read = dpp.is_some();
    inst.dpp = dpp.unwrap_or(inst.dpp);
    read
}

fn read_sdwa(inst: &mut Inst, name: &str, value: &str) -> bool {
    let part = match value {
        "BYTE_0" => Part::Byte(0),
        "BYTE_1" => Part::Byte(1),
        "BYTE_2" => Part::Byte(2),
        "BYTE_3" => Part::Byte(3),
        "WORD_0" => Part::Word(0),
        "WORD_1" => Part::Word(1),
        _ => Part::All,
    };
    let mut sdwa = inst.sdwa.unwrap_or(Sdwa::ALL);
    match name {
        "dst_sel" => sdwa.destination = part,
        "src0_sel" => sdwa.sources[0] = part,
        "src1_sel" => sdwa.sources[1] = part,
        "dst_unused" => {
            sdwa.rest = match value {
                "UNUSED_PAD" => Rest::Zero,
                "UNUSED_SEXT" => Rest::Sign,
                _ => Rest::Kept,
            };
        }
        _ => return false,
    }
    inst.sdwa = Some(sdwa);
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operands_of_every_kind_are_read() {
        let i = parse("v_fma_f32 v7, -v[3:4], |s5|, 0xffffffff clamp mul:2").unwrap();
        assert_eq!(i.name, "v_fma_f32");
        assert_eq!(
            i.operands[..4],
            [Operand::Vector(7), Operand::Vector(3), Operand::Scalar(5), Operand::Int(0xffff_ffff)]
        );
        assert_eq!((i.registers[1], i.count, i.clamp, i.factor), (2, 4, true, 2.0));
        assert!(i.modifiers[1].negative && i.modifiers[2].absolute && i.modified && i.plain);
        let i = parse("\tv_add_f64 v[0:1], -1.0, neg(s[2:3])").unwrap();
        assert_eq!(i.operands[1..3], [Operand::Float(-1.0), Operand::Scalar(2)]);
        assert!(i.modifiers[2].negative && !i.modifiers[1].negative);
        let i = parse("v_accvgpr_read_b32 v1, a3").unwrap();
        assert_eq!(i.operands[1], Operand::Vector(259));
    }

    #[test]
    fn memory_instructions_have_offsets_and_hints() {
        let i = parse("global_load_dwordx4 v[2:5], v[0:1], off offset:-16 sc0 nt sc1").unwrap();
        assert_eq!((i.offset, i.count, i.operands[2], i.returns), (-16, 3, Operand::None, true));
        let i = parse("ds_read2_b32 v[0:1], v2 offset0:3 offset1:255").unwrap();
        assert_eq!(i.offsets, [3, 255]);
        assert!(parse("s_waitcnt vmcnt(0) lgkmcnt(0)").is_ok());
    }

    #[test]
    fn lanes_and_parts_are_read() {
        let i = parse("v_mov_b32_dpp v1, v0 quad_perm:[1,0,3,2] row_mask:0xf bank_mask:0x3 bound_ctrl:1").unwrap();
        assert_eq!((i.dpp, i.bank_mask, i.bound_control, i.plain), (Dpp::Quad([1, 0, 3, 2]), 3, true, false));
        let i =
            parse("v_or_b32_sdwa v1, v0, v2 dst_sel:DWORD dst_unused:UNUSED_PRESERVE src0_sel:WORD_1 src1_sel:BYTE_3");
        let sdwa = i.unwrap().sdwa.unwrap();
        assert_eq!(sdwa, Sdwa { destination: Part::All, rest: Rest::Kept, sources: [Part::Word(1), Part::Byte(3)] });
        let i = parse("v_pk_mul_f32 v[0:1], v[2:3], s[0:1] op_sel_hi:[1,0] neg_lo:[0,1]").unwrap();
        assert_eq!((i.op_sel_hi, i.negative_low, i.op_sel), (Some(1), 2, 0));
    }

    #[test]
    fn two_instructions_in_one_are_both_read() {
        let i = parse("v_dual_mov_b32 v0, v1 :: v_dual_add_f32 v2, v3, v4").unwrap();
        assert_eq!((i.count, i.second.map(|s| s.count)), (2, Some(3)));
    }

    #[test]
    fn what_is_not_known_is_an_error() {
        assert!(parse("v_mfma_f32_16x16x16_bf16 a[0:3], v[0:1], v[2:3], a[0:3] cbsz:1").is_err());
        assert!(parse("global_load_dword v0, v1, s[0:1] something:2").unwrap_err().contains("something:2"));
    }
}
