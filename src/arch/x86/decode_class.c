/*
 * Classes and features of instructions. Everything is decided by four tables: the features that an instruction set
 * needs, mnemonics that are not PLAIN, and opcodes of MOV, PUSH and POP that name a segment or control register.
 */
#include "arch/x86/decode_class.h"
#include "arch/x86/cpuid.h"

#define KNOWN BIT(63) /* set in every entry that stands: a set without it is not carried out */
#define NEED(f) (KNOWN | BIT(FEAT_##f))
#define NEED2(f, g) (KNOWN | BIT(FEAT_##f) | BIT(FEAT_##g))

/* Instruction sets carried out, and the features that must be claimed for them; others raise #UD. */
static const uint64_t set_needs[ZYDIS_ISA_SET_MAX_VALUE + 1] = {
	[ZYDIS_ISA_SET_I86] = KNOWN,
	[ZYDIS_ISA_SET_I186] = KNOWN,
	[ZYDIS_ISA_SET_I286REAL] = KNOWN,
	[ZYDIS_ISA_SET_I286PROTECTED] = KNOWN,
	[ZYDIS_ISA_SET_I386] = KNOWN,
	[ZYDIS_ISA_SET_I486] = KNOWN,
	[ZYDIS_ISA_SET_I486REAL] = KNOWN,
	[ZYDIS_ISA_SET_PENTIUMREAL] = KNOWN,
	[ZYDIS_ISA_SET_PENTIUMMMX] = KNOWN,
	[ZYDIS_ISA_SET_PPRO] = KNOWN,
	[ZYDIS_ISA_SET_FAT_NOP] = KNOWN,
	[ZYDIS_ISA_SET_CMOV] = KNOWN,
	[ZYDIS_ISA_SET_FCMOV] = KNOWN,
	[ZYDIS_ISA_SET_X87] = KNOWN,
	[ZYDIS_ISA_SET_FXSAVE] = KNOWN,
	[ZYDIS_ISA_SET_FXSAVE64] = KNOWN,
	[ZYDIS_ISA_SET_SSE] = KNOWN,
	[ZYDIS_ISA_SET_SSEMXCSR] = KNOWN,
	[ZYDIS_ISA_SET_SSE_PREFETCH] = KNOWN,
	[ZYDIS_ISA_SET_PREFETCH_NOP] = KNOWN,
	[ZYDIS_ISA_SET_PREFETCHWT1] = KNOWN,
	[ZYDIS_ISA_SET_SSE2] = KNOWN,
	[ZYDIS_ISA_SET_SSE2MMX] = KNOWN,
	[ZYDIS_ISA_SET_CLFSH] = KNOWN,
	[ZYDIS_ISA_SET_PAUSE] = KNOWN,
	[ZYDIS_ISA_SET_LONGMODE] = KNOWN,
	[ZYDIS_ISA_SET_AMD] = KNOWN, /* SYSCALL and SYSRET outside 64-bit mode: the emulator knows whose they are */
	[ZYDIS_ISA_SET_RDPMC] = KNOWN,
	[ZYDIS_ISA_SET_LZCNT] =
		KNOWN, /* without the feature the same bytes are BSR, and the host decides what they do */
	[ZYDIS_ISA_SET_LAHF] = KNOWN,
	[ZYDIS_ISA_SET_SSE3] = NEED(SSE3),
	[ZYDIS_ISA_SET_SSE3X87] = NEED(SSE3),
	[ZYDIS_ISA_SET_SSSE3] = NEED(SSSE3),
	[ZYDIS_ISA_SET_SSSE3MMX] = NEED(SSSE3),
	[ZYDIS_ISA_SET_SSE4] = NEED(SSE41),
	[ZYDIS_ISA_SET_SSE42] = NEED(SSE42),
	[ZYDIS_ISA_SET_POPCNT] = NEED(POPCNT),
	[ZYDIS_ISA_SET_CMPXCHG16B] = NEED(CX16),
	[ZYDIS_ISA_SET_MOVBE] = NEED(MOVBE),
	[ZYDIS_ISA_SET_AES] = NEED(AES),
	[ZYDIS_ISA_SET_PCLMULQDQ] = NEED(PCLMUL),
	[ZYDIS_ISA_SET_SHA] = NEED(SHA),
	[ZYDIS_ISA_SET_GFNI] = NEED(GFNI),
	[ZYDIS_ISA_SET_AVX] = NEED(AVX),
	[ZYDIS_ISA_SET_AVXAES] = NEED2(AVX, AES),
	[ZYDIS_ISA_SET_AVX_GFNI] = NEED2(AVX, GFNI),
	[ZYDIS_ISA_SET_AVX2] = NEED(AVX2),
	[ZYDIS_ISA_SET_AVX2GATHER] = NEED(AVX2),
	[ZYDIS_ISA_SET_VAES] = NEED(VAES),
	[ZYDIS_ISA_SET_VPCLMULQDQ] = NEED(VPCLMUL),
	[ZYDIS_ISA_SET_F16C] = NEED(F16C),
	[ZYDIS_ISA_SET_FMA] = NEED(FMA),
	[ZYDIS_ISA_SET_BMI1] = NEED(BMI1),
	[ZYDIS_ISA_SET_BMI2] = NEED(BMI2),
	[ZYDIS_ISA_SET_ADOX_ADCX] = NEED(ADX),
	[ZYDIS_ISA_SET_RDRAND] = NEED(RDRAND),
	[ZYDIS_ISA_SET_RDSEED] = NEED(RDSEED),
	[ZYDIS_ISA_SET_RDTSCP] = NEED(RDTSCP),
	[ZYDIS_ISA_SET_RDPID] = NEED(RDPID),
	[ZYDIS_ISA_SET_RDWRFSGS] = NEED(FSGSBASE),
	[ZYDIS_ISA_SET_INVPCID] = NEED(INVPCID),
	[ZYDIS_ISA_SET_SMAP] = NEED(SMAP),
	[ZYDIS_ISA_SET_CLFLUSHOPT] = NEED(CLFLUSHOPT),
	[ZYDIS_ISA_SET_CLWB] = NEED(CLWB),
	[ZYDIS_ISA_SET_CLZERO] = NEED(CLZERO),
	[ZYDIS_ISA_SET_XSAVE] = NEED(XSAVE),
	[ZYDIS_ISA_SET_XSAVEOPT] = NEED(XSAVEOPT),
	[ZYDIS_ISA_SET_XSAVEC] = NEED(XSAVEC),
	[ZYDIS_ISA_SET_XSAVES] = NEED(XSAVES),
};

#define SYS(m) [ZYDIS_MNEMONIC_##m] = CLS_SYSTEM
#define SPEC(m) [ZYDIS_MNEMONIC_##m] = CLS_SPECIAL
#define STACK(m) [ZYDIS_MNEMONIC_##m] = CLS_STACK
#define BAD(m) [ZYDIS_MNEMONIC_##m] = CLS_INVALID

/* Mnemonics that are always of one class other than PLAIN. Branches and strings go by Zydis's categories instead. */
static const uint8_t mnemonic_class[ZYDIS_MNEMONIC_MAX_VALUE + 1] = {
	/* privileged or sensitive */
	SYS(CLTS),
	SYS(HLT),
	SYS(CLI),
	SYS(STI),
	SYS(CLAC),
	SYS(STAC),
	SYS(SWAPGS),
	SYS(INVD),
	SYS(WBINVD),
	SYS(INVLPG),
	SYS(INVPCID),
	SYS(RDMSR),
	SYS(WRMSR),
	SYS(RDPMC),
	SYS(RDTSC),
	SYS(RDTSCP),
	SYS(RDPID),
	SYS(CPUID),
	SYS(VMCALL),
	SYS(VMMCALL),
	SYS(XGETBV),
	SYS(XSETBV),
	SYS(RDFSBASE),
	SYS(RDGSBASE),
	SYS(WRFSBASE),
	SYS(WRGSBASE),
	SYS(SYSCALL),
	SYS(SYSRET),
	SYS(SYSENTER),
	SYS(SYSEXIT),
	SYS(PUSHF),
	SYS(PUSHFD),
	SYS(PUSHFQ),
	SYS(POPF),
	SYS(POPFD),
	SYS(POPFQ),
	SYS(IRET),
	SYS(IRETD),
	SYS(IRETQ),
	SYS(INT),
	SYS(INT1),
	SYS(INT3),
	SYS(INTO),
	SYS(IN),
	SYS(OUT),
	SYS(INSB),
	SYS(INSW),
	SYS(INSD),
	SYS(OUTSB),
	SYS(OUTSW),
	SYS(OUTSD),
	/* segments and descriptor tables */
	SYS(LGDT),
	SYS(LIDT),
	SYS(LLDT),
	SYS(LTR),
	SYS(LMSW),
	SYS(SGDT),
	SYS(SIDT),
	SYS(SLDT),
	SYS(STR),
	SYS(SMSW),
	SYS(LAR),
	SYS(LSL),
	SYS(VERR),
	SYS(VERW),
	SYS(ARPL),
	SYS(LDS),
	SYS(LES),
	SYS(LFS),
	SYS(LGS),
	SYS(LSS),
	/* the stack */
	STACK(PUSH),
	STACK(POP),
	STACK(PUSHA),
	STACK(PUSHAD),
	STACK(POPA),
	STACK(POPAD),
	STACK(ENTER),
	STACK(LEAVE),
	/* unprivileged, but not to be copied */
	SPEC(XLAT),
	SPEC(AAA),
	SPEC(AAS),
	SPEC(AAM),
	SPEC(AAD),
	SPEC(DAA),
	SPEC(DAS),
	SPEC(SALC),
	SPEC(BOUND),
	SPEC(CLD),
	SPEC(STD),
	SPEC(CLFLUSH),
	SPEC(CLFLUSHOPT),
	SPEC(CLWB),
	SPEC(CLZERO),
	SPEC(PREFETCH),
	SPEC(PREFETCHW),
	SPEC(PREFETCHWT1),
	SPEC(PREFETCHNTA),
	SPEC(PREFETCHT0),
	SPEC(PREFETCHT1),
	SPEC(PREFETCHT2),
	SPEC(MASKMOVQ),
	SPEC(MASKMOVDQU),
	SPEC(VMASKMOVDQU),
	SPEC(VMASKMOVPS),
	SPEC(VMASKMOVPD),
	SPEC(VPMASKMOVD),
	SPEC(VPMASKMOVQ),
	SPEC(VGATHERDPD),
	SPEC(VGATHERDPS),
	SPEC(VGATHERQPD),
	SPEC(VGATHERQPS),
	SPEC(VPGATHERDD),
	SPEC(VPGATHERDQ),
	SPEC(VPGATHERQD),
	SPEC(VPGATHERQQ),
	SPEC(FXSAVE),
	SPEC(FXSAVE64),
	SPEC(FXRSTOR),
	SPEC(FXRSTOR64),
	SPEC(XSAVE),
	SPEC(XSAVE64),
	SPEC(XSAVEC),
	SPEC(XSAVEC64),
	SPEC(XSAVEOPT),
	SPEC(XSAVEOPT64),
	SPEC(XSAVES),
	SPEC(XSAVES64),
	SPEC(XRSTOR),
	SPEC(XRSTOR64),
	SPEC(XRSTORS),
	SPEC(XRSTORS64),
	SPEC(FNSAVE),
	SPEC(FRSTOR),
	SPEC(FNSTENV),
	SPEC(FLDENV),
	/* defined to be undefined, or of features that share their set with others */
	BAD(UD0),
	BAD(UD1),
	BAD(UD2),
	BAD(RSM),
	BAD(FEMMS),
};

/* MOV of segment, control and debug registers; PUSH and POP of segment registers. */
static bool names_special_register(const ZydisDecodedInstruction *zi)
{
	uint8_t op = zi->opcode;

	if (zi->opcode_map == ZYDIS_OPCODE_MAP_0F)
		return zi->mnemonic == ZYDIS_MNEMONIC_MOV ? op >= 0x20 && op <= 0x27 : true; /* 0F A0: PUSH FS */
	if (zi->mnemonic == ZYDIS_MNEMONIC_MOV)
		return op == 0x8c || op == 0x8e;
	return op < 0x20; /* 06 PUSH ES … 1F POP DS */
}

/* PREFETCHW of a register; VPEXTRQ outside 64-bit mode; CLZERO with a repeat prefix, which makes another, unknown
 * instruction of it. */
static bool undefined_form(const ZydisDecodedInstruction *zi, bool amd)
{
	if (amd && zi->opcode_map == ZYDIS_OPCODE_MAP_0F && zi->opcode == 0x0d && zi->raw.modrm.mod == 3)
		return true;
	if (zi->mnemonic == ZYDIS_MNEMONIC_VPEXTRD || zi->mnemonic == ZYDIS_MNEMONIC_VPINSRD)
		return amd && zi->raw.vex.W;
	if (zi->mnemonic != ZYDIS_MNEMONIC_CLZERO)
		return false;
	for (unsigned i = 0; i < zi->raw.prefix_count; i++) {
		if (zi->raw.prefixes[i].value == 0xf3 || zi->raw.prefixes[i].value == 0xf2)
			return true;
	}
	return false;
}

/* x87 to EFLAGS: of the PPro's set, or, from Zydis 4.1 on, of one of their own that 4.0 has no name for. */
static bool compares_to_flags(const ZydisDecodedInstruction *zi)
{
	return zi->mnemonic == ZYDIS_MNEMONIC_FCOMI || zi->mnemonic == ZYDIS_MNEMONIC_FCOMIP ||
	       zi->mnemonic == ZYDIS_MNEMONIC_FUCOMI || zi->mnemonic == ZYDIS_MNEMONIC_FUCOMIP;
}

static bool features_claimed(const ZydisDecodedInstruction *zi, uint64_t features)
{
	uint64_t need = set_needs[zi->meta.isa_set];

	if (zi->mnemonic == ZYDIS_MNEMONIC_VPCLMULQDQ)
		need |= BIT(FEAT_PCLMUL);
	else if (zi->mnemonic == ZYDIS_MNEMONIC_TZCNT) /* BSF without it */
		need = KNOWN;
	else if (compares_to_flags(zi))
		need = KNOWN;
	else if (zi->meta.isa_set == ZYDIS_ISA_SET_LAHF && zi->machine_mode == ZYDIS_MACHINE_MODE_LONG_64)
		need |= BIT(FEAT_LAHF64);
	return (need & KNOWN) && !(need & ~KNOWN & ~features);
}

/* BT, BTS, BTR, BTC with a bit offset in a register: the memory touched is not where the operand says. */
static bool bit_string(const ZydisDecodedInstruction *zi)
{
	return zi->meta.category == ZYDIS_CATEGORY_BITBYTE && zi->opcode_map == ZYDIS_OPCODE_MAP_0F &&
	       (zi->opcode & 0xe7) == 0xa3 && zi->raw.modrm.mod != 3;
}

static enum x86_class class_by_category(const ZydisDecodedInstruction *zi)
{
	switch (zi->meta.category) {
	case ZYDIS_CATEGORY_COND_BR:
	case ZYDIS_CATEGORY_UNCOND_BR:
	case ZYDIS_CATEGORY_CALL:
	case ZYDIS_CATEGORY_RET:
		return zi->meta.branch_type == ZYDIS_BRANCH_TYPE_FAR ? CLS_SYSTEM : CLS_BRANCH;
	case ZYDIS_CATEGORY_STRINGOP:
		return CLS_STRING;
	case ZYDIS_CATEGORY_BITBYTE:
		return bit_string(zi) ? CLS_SPECIAL : CLS_PLAIN;
	default:
		return CLS_PLAIN;
	}
}

enum x86_class decode_class(const ZydisDecodedInstruction *zi, uint64_t features, bool amd)
{
	enum x86_class cls = mnemonic_class[zi->mnemonic];

	if (zi->mnemonic == ZYDIS_MNEMONIC_VMCALL || zi->mnemonic == ZYDIS_MNEMONIC_VMMCALL)
		return cls; /* the only ones of their sets */
	if (zi->encoding != ZYDIS_INSTRUCTION_ENCODING_LEGACY && zi->encoding != ZYDIS_INSTRUCTION_ENCODING_VEX)
		return CLS_INVALID;
	if (!features_claimed(zi, features) || undefined_form(zi, amd))
		return CLS_INVALID;
	if (cls == CLS_STACK || zi->mnemonic == ZYDIS_MNEMONIC_MOV)
		return (zi->mnemonic == ZYDIS_MNEMONIC_MOV || zi->mnemonic == ZYDIS_MNEMONIC_PUSH ||
			zi->mnemonic == ZYDIS_MNEMONIC_POP) &&
				       names_special_register(zi)
			       ? CLS_SYSTEM
			       : cls;
	if (zi->mnemonic == ZYDIS_MNEMONIC_VZEROALL ||
	    zi->mnemonic == ZYDIS_MNEMONIC_VZEROUPPER) /* 8 or 16 registers */
		return zi->machine_mode == ZYDIS_MACHINE_MODE_LONG_64 ? CLS_PLAIN : CLS_SPECIAL;
	return cls != CLS_PLAIN ? cls : class_by_category(zi);
}
