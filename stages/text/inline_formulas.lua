-- A filter of pandoc that writes inline formulas as text: 300\,km$^2$ becomes 300 km, superscript 2.
-- Where text cannot write one, as \sqrt{2}, its TeX source stays.
-- Each different formula is written once, and all in one page: a page takes more than a millisecond.
function Pandoc(document)
  local numbers, formulas = {}, {}
  document:walk({Math = function(math)
    if math.mathtype == "InlineMath" and not numbers[math.text] then
      formulas[#formulas + 1] = pandoc.Div({pandoc.Plain({math})})
      numbers[math.text] = #formulas
    end
  end})
  local page = pandoc.write(pandoc.Pandoc(formulas), "html"):gsub("<sup>∘</sup>", "°")
  local texts = pandoc.read(page, "html").blocks
  return document:walk({Math = function(math)
    if math.mathtype == "InlineMath" then
      return pandoc.utils.blocks_to_inlines(texts[numbers[math.text]].content)
    end
  end})
end
